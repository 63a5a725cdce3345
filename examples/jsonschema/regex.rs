//! Regular expressions of JSON Schema's `pattern`: ECMA-262 without look-around and back-references.
//!
//! A program of small steps, run over all its threads at once, so no pattern takes more time than
//! its length times that of the text.

const STEPS_MAX: usize = 20_000;
const DEPTH_MAX: usize = 100;
const REPEAT_MAX: u32 = 1000;

enum Step {
    Class(Vec<(char, char)>, bool), // ranges; whether negated
    Split(usize, usize),
    Jump(usize),
    Start,
    End,
    Word(bool), // at a word's edge, or not at one
    Match,
}

pub struct Regex {
    steps: Vec<Step>,
    visits: usize, // of nodes while compiling: repeats of nothing make no steps, but take time
}

enum Node {
    Empty,
    Class(Vec<(char, char)>, bool),
    Start,
    End,
    Word(bool),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

struct Parser {
    text: Vec<char>,
    at: usize,
}

const DIGIT: &[(char, char)] = &[('0', '9')];
const WORD: &[(char, char)] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
const SPACE: &[(char, char)] = &[
    ('\t', '\r'),
    (' ', ' '),
    ('\u{a0}', '\u{a0}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{2000}', '\u{200a}'),
    ('\u{2028}', '\u{2029}'),
    ('\u{202f}', '\u{202f}'),
    ('\u{205f}', '\u{205f}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{feff}', '\u{feff}'),
];

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, c: char) -> bool {
        let hit = self.peek() == Some(c);
        self.at += hit as usize;
        hit
    }

    fn choice(&mut self, depth: usize) -> Result<Node, String> {
        if depth > DEPTH_MAX {
            return Err("groups nested too deeply".into());
        }
        let mut ways = vec![self.sequence(depth)?];
        while self.take('|') {
            ways.push(self.sequence(depth)?);
        }
        Ok(if ways.len() == 1 { ways.remove(0) } else { Node::Choice(ways) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, String> {
        let mut parts = Vec::new();
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            let one = self.atom(depth)?;
            let one = self.repeated(one)?;
            parts.push(one);
        }
        Ok(Node::Sequence(parts))
    }

    fn number(&mut self) -> Option<u32> {
        let mut value = None;
        while let Some(d) = self.peek().and_then(|c| c.to_digit(10)) {
            value = Some(value.unwrap_or(0u32).saturating_mul(10).saturating_add(d));
            self.at += 1;
        }
        value
    }

    fn repeated(&mut self, one: Node) -> Result<Node, String> {
        let (low, high) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                let back = self.at;
                self.at += 1;
                let low = self.number();
                let high = if self.take(',') { self.number() } else { low };
                match (low, self.peek()) {
                    (Some(low), Some('}')) => (low, high),
                    _ => {
                        self.at = back; // a brace that counts nothing is a brace
                        return Ok(one);
                    }
                }
            }
            _ => return Ok(one),
        };
        self.at += 1;
        self.take('?'); // lazy or not: whether it matches is the same
        if low > REPEAT_MAX || high.map_or(false, |h| h > REPEAT_MAX || h < low) {
            return Err(format!("repeats more than {} times, or backwards", REPEAT_MAX));
        }
        Ok(Node::Repeat(Box::new(one), low, high))
    }

    fn atom(&mut self, depth: usize) -> Result<Node, String> {
        let c = match self.peek() {
            Some(c) => c,
            None => return Ok(Node::Empty),
        };
        self.at += 1;
        match c {
            '^' => Ok(Node::Start),
            '$' => Ok(Node::End),
            '.' => Ok(Node::Class(vec![('\n', '\n'), ('\r', '\r'), ('\u{2028}', '\u{2029}')], true)),
            '(' => {
                if self.take('?') {
                    if self.take('<') {
                        if matches!(self.peek(), Some('=' | '!')) {
                            return Err("look-behind is not supported".into());
                        }
                        while self.peek().map_or(false, |c| c != '>') {
                            self.at += 1;
                        }
                        self.at += 1;
                    } else if !self.take(':') {
                        return Err("look-ahead is not supported".into());
                    }
                }
                let inside = self.choice(depth + 1)?;
                if !self.take(')') {
                    return Err("a group is never closed".into());
                }
                Ok(inside)
            }
            '[' => self.class(),
            '\\' => match self.escape()? {
                Escape::Class(ranges, negated) => Ok(Node::Class(ranges, negated)),
                Escape::Edge(at) => Ok(Node::Word(at)),
            },
            '*' | '+' | '?' => Err("nothing to repeat".into()),
            c => Ok(Node::Class(vec![(c, c)], false)),
        }
    }

    fn escape(&mut self) -> Result<Escape, String> {
        let c = self.peek().ok_or("ends with a backslash")?;
        self.at += 1;
        let one = |c: char| Ok(Escape::Class(vec![(c, c)], false));
        match c {
            'd' => Ok(Escape::Class(DIGIT.to_vec(), false)),
            'D' => Ok(Escape::Class(DIGIT.to_vec(), true)),
            'w' => Ok(Escape::Class(WORD.to_vec(), false)),
            'W' => Ok(Escape::Class(WORD.to_vec(), true)),
            's' => Ok(Escape::Class(SPACE.to_vec(), false)),
            'S' => Ok(Escape::Class(SPACE.to_vec(), true)),
            'b' => Ok(Escape::Edge(true)),
            'B' => Ok(Escape::Edge(false)),
            'n' => one('\n'),
            'r' => one('\r'),
            't' => one('\t'),
            'f' => one('\u{c}'),
            'v' => one('\u{b}'),
            '0' => one('\0'),
            'c' => {
                let letter = self.peek().filter(char::is_ascii_alphabetic).ok_or("\\c wants a letter")?;
                self.at += 1;
                one((letter as u8 & 31) as char)
            }
            'x' => self.hex(2).and_then(one),
            'u' if self.take('{') => {
                let from = self.at;
                while self.peek().map_or(false, |c| c != '}') {
                    self.at += 1;
                }
                let digits: String = self.text[from..self.at].iter().collect();
                self.at += 1;
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                one(code.ok_or("\\u{...} is no character")?)
            }
            'u' => self.hex(4).and_then(one),
            'p' | 'P' => self.property(c == 'P'),
            '1'..='9' | 'k' => Err("back-references are not supported".into()),
            c if c.is_alphanumeric() => Err(format!("\\{} means nothing", c)),
            c => one(c),
        }
    }

    fn hex(&mut self, count: usize) -> Result<char, String> {
        let digits: String = self.text.iter().skip(self.at).take(count).collect();
        self.at += digits.chars().count();
        u32::from_str_radix(&digits, 16)
            .ok()
            .filter(|_| digits.len() == count)
            .and_then(char::from_u32)
            .ok_or_else(|| "an escape is no character".into())
    }

    /// `\p{L}` and the few others that need no tables of their own.
    fn property(&mut self, negated: bool) -> Result<Escape, String> {
        let mut name = String::new();
        if !self.take('{') {
            return Err("\\p wants a name in braces".into());
        }
        while let Some(c) = self.peek().filter(|&c| c != '}') {
            name.push(c);
            self.at += 1;
        }
        self.at += 1;
        let holds: fn(char) -> bool = match name.as_str() {
            "L" | "Letter" | "Alphabetic" => char::is_alphabetic,
            "Lu" | "Uppercase_Letter" => char::is_uppercase,
            "Ll" | "Lowercase_Letter" => char::is_lowercase,
            "N" | "Number" => char::is_numeric,
            "Nd" | "digit" | "Decimal_Number" => |c| c.is_numeric() && !c.is_alphabetic(),
            _ => return Err(format!("\\p{{{}}} is not supported", name)),
        };
        let mut ranges: Vec<(char, char)> = Vec::new();
        for c in '\0'..='\u{2ffff}' {
            if holds(c) {
                match ranges.last_mut() {
                    Some(last) if last.1 as u32 + 1 == c as u32 => last.1 = c,
                    _ => ranges.push((c, c)),
                }
            }
        }
        Ok(Escape::Class(ranges, negated))
    }

    fn class(&mut self) -> Result<Node, String> {
        let negated = self.take('^');
        let mut ranges: Vec<(char, char)> = Vec::new();
        loop {
            let c = self.peek().ok_or("a class is never closed")?;
            self.at += 1;
            if c == ']' {
                return Ok(Node::Class(ranges, negated));
            }
            let low = if c == '\\' {
                if self.take('b') {
                    '\u{8}'
                } else if self.take('-') {
                    '-'
                } else {
                    match self.escape()? {
                        Escape::Class(set, false) if set.len() == 1 && set[0].0 == set[0].1 => set[0].0,
                        Escape::Class(set, false) => {
                            ranges.extend(set);
                            continue;
                        }
                        Escape::Class(set, true) => {
                            ranges.extend(complement(set));
                            continue;
                        }
                        Escape::Edge(_) => return Err("\\B stands in a class".into()),
                    }
                }
            } else {
                c
            };
            let dash = self.peek() == Some('-') && self.text.get(self.at + 1).map_or(false, |&c| c != ']');
            if !dash {
                ranges.push((low, low));
                continue;
            }
            self.at += 1;
            let c = self.peek().unwrap_or(']');
            self.at += 1;
            let high = if c == '\\' {
                match self.escape()? {
                    Escape::Class(set, false) if set.len() == 1 && set[0].0 == set[0].1 => set[0].0,
                    _ => return Err("a range ends with a class".into()),
                }
            } else {
                c
            };
            if high < low {
                return Err("a range goes backwards".into());
            }
            ranges.push((low, high));
        }
    }
}

enum Escape {
    Class(Vec<(char, char)>, bool),
    Edge(bool),
}

fn complement(mut set: Vec<(char, char)>) -> Vec<(char, char)> {
    set.sort_unstable();
    let mut out = Vec::new();
    let mut next = 0u32;
    let mut gap = |from: u32, to: u32| {
        // surrogates are no characters
        for (a, b) in [(from, to.min(0xd7ff)), (from.max(0xe000), to)] {
            if let (true, Some(a), Some(b)) = (a <= b, char::from_u32(a), char::from_u32(b)) {
                out.push((a, b));
            }
        }
    };
    for (low, high) in set {
        if low as u32 > next {
            gap(next, low as u32 - 1);
        }
        next = next.max(high as u32 + 1);
    }
    gap(next, 0x10ffff);
    out
}

impl Regex {
    pub fn new(pattern: &str) -> Result<Regex, String> {
        let mut parser = Parser { text: pattern.chars().collect(), at: 0 };
        let node = parser.choice(0)?;
        if parser.at < parser.text.len() {
            return Err("a ) closes nothing".into());
        }
        let mut regex = Regex { steps: Vec::new(), visits: 0 };
        regex.compile(&node)?;
        regex.steps.push(Step::Match);
        Ok(regex)
    }

    fn push(&mut self, step: Step) -> Result<usize, String> {
        if self.steps.len() >= STEPS_MAX {
            return Err("the pattern is too large".into());
        }
        self.steps.push(step);
        Ok(self.steps.len() - 1)
    }

    /// How much work one match over a text of this many bytes may be.
    pub fn cost(&self, bytes: usize) -> usize {
        self.steps.len().saturating_mul(bytes + 1).saturating_add(500)
    }

    fn compile(&mut self, node: &Node) -> Result<(), String> {
        self.visits += 1;
        if self.visits > 10 * STEPS_MAX {
            return Err("the pattern is too large".into());
        }
        match node {
            Node::Empty => {}
            Node::Class(ranges, negated) => {
                self.push(Step::Class(ranges.clone(), *negated))?;
            }
            Node::Start => drop(self.push(Step::Start)?),
            Node::End => drop(self.push(Step::End)?),
            Node::Word(at) => drop(self.push(Step::Word(*at))?),
            Node::Sequence(parts) => {
                for part in parts {
                    self.compile(part)?;
                }
            }
            Node::Choice(ways) => {
                let mut ends = Vec::new();
                for (i, way) in ways.iter().enumerate() {
                    if i + 1 == ways.len() {
                        self.compile(way)?;
                        break;
                    }
                    let split = self.push(Step::Split(0, 0))?;
                    self.compile(way)?;
                    ends.push(self.push(Step::Jump(0))?);
                    self.steps[split] = Step::Split(split + 1, self.steps.len());
                }
                let end = self.steps.len();
                for jump in ends {
                    self.steps[jump] = Step::Jump(end);
                }
            }
            Node::Repeat(one, low, high) => {
                for _ in 0..*low {
                    self.compile(one)?;
                }
                match high {
                    None => {
                        let split = self.push(Step::Split(0, 0))?;
                        self.compile(one)?;
                        self.push(Step::Jump(split))?;
                        self.steps[split] = Step::Split(split + 1, self.steps.len());
                    }
                    Some(high) => {
                        let mut splits = Vec::new();
                        for _ in *low..*high {
                            splits.push(self.push(Step::Split(0, 0))?);
                            self.compile(one)?;
                        }
                        let end = self.steps.len();
                        for split in splits {
                            self.steps[split] = Step::Split(split + 1, end);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the pattern matches anywhere in the text.
    pub fn matches(&self, text: &str) -> bool {
        let mut now: Vec<usize> = Vec::new();
        let mut next: Vec<usize> = Vec::new();
        let mut stack: Vec<usize> = Vec::new();
        let mut seen = vec![usize::MAX; self.steps.len()];
        let mut before: Option<char> = None;
        let mut rest = text.chars();
        let mut position = 0;
        loop {
            let after = rest.clone().next();
            next.push(0);
            // follow what needs no character, from every thread that arrived here
            now.clear();
            while let Some(start) = next.pop() {
                stack.push(start);
                while let Some(at) = stack.pop() {
                    if seen[at] == position {
                        continue;
                    }
                    seen[at] = position;
                    match &self.steps[at] {
                        Step::Match => return true,
                        Step::Class(..) => now.push(at),
                        Step::Jump(to) => stack.push(*to),
                        Step::Split(a, b) => stack.extend([*b, *a]),
                        Step::Start if before.is_none() => stack.push(at + 1),
                        Step::End if after.is_none() => stack.push(at + 1),
                        Step::Word(want) => {
                            let edge = before.map_or(false, is_word) != after.map_or(false, is_word);
                            if edge == *want {
                                stack.push(at + 1);
                            }
                        }
                        Step::Start | Step::End => {}
                    }
                }
            }
            let c = match rest.next() {
                Some(c) => c,
                None => return false,
            };
            for &at in &now {
                if let Step::Class(ranges, negated) = &self.steps[at] {
                    if ranges.iter().any(|&(low, high)| low <= c && c <= high) != *negated {
                        next.push(at + 1);
                    }
                }
            }
            before = Some(c);
            position += 1;
        }
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}
