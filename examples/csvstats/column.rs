//! What is learned of one column, cell by cell.

use crate::json::Writer;
use std::collections::BTreeMap;

/// Distinct values that are remembered for one column; past this the counts say so.
const DISTINCT_MAX: usize = 100_000;

pub struct Column {
    name: String,
    count: u64,
    nulls: u64,
    integers: u64,
    numbers: u64, // integers too
    booleans: u64,
    dates: u64,
    times: u64, // dates with a time of day
    values: Vec<f64>,
    integer_min: i64,
    integer_max: i64,
    text_min: String,
    text_max: String,
    length_min: usize,
    length_max: usize,
    distinct: BTreeMap<String, u64>,
    distinct_full: bool,
}

impl Column {
    pub fn new(name: &str, index: usize) -> Column {
        Column {
            name: if name.is_empty() { format!("column_{}", index + 1) } else { name.to_string() },
            count: 0,
            nulls: 0,
            integers: 0,
            numbers: 0,
            booleans: 0,
            dates: 0,
            times: 0,
            values: Vec::new(),
            integer_min: i64::MAX,
            integer_max: i64::MIN,
            text_min: String::new(),
            text_max: String::new(),
            length_min: usize::MAX,
            length_max: 0,
            distinct: BTreeMap::new(),
            distinct_full: false,
        }
    }

    pub fn add_missing(&mut self) {
        self.nulls += 1;
    }

    pub fn add(&mut self, cell: &str) {
        let cell = cell.trim();
        if is_null(cell) {
            self.nulls += 1;
            return;
        }
        self.count += 1;
        let length = cell.chars().count();
        self.length_min = self.length_min.min(length);
        self.length_max = self.length_max.max(length);
        if self.count == 1 || cell < self.text_min.as_str() {
            self.text_min = cell.to_string();
        }
        if self.count == 1 || cell > self.text_max.as_str() {
            self.text_max = cell.to_string();
        }
        if let Some(times) = self.distinct.get_mut(cell) {
            *times += 1;
        } else if self.distinct.len() < DISTINCT_MAX {
            self.distinct.insert(cell.to_string(), 1);
        } else {
            self.distinct_full = true;
        }
        // a column that already holds other things is text: numbers in it are not worth keeping
        if self.numbers + 1 == self.count {
            if let Some(value) = number(cell) {
                self.numbers += 1;
                self.values.push(value);
                if let Some(whole) = integer(cell) {
                    self.integers += 1;
                    self.integer_min = self.integer_min.min(whole);
                    self.integer_max = self.integer_max.max(whole);
                }
                return;
            }
            self.values = Vec::new();
        }
        self.booleans += is_boolean(cell) as u64;
        match date_kind(cell) {
            1 => self.dates += 1,
            2 => self.times += 1,
            _ => {}
        }
    }

    fn kind(&self) -> &'static str {
        let n = self.count;
        if n == 0 {
            "empty"
        } else if self.integers == n {
            "integer"
        } else if self.numbers == n {
            "number"
        } else if self.booleans == n {
            "boolean"
        } else if self.dates == n {
            "date"
        } else if self.times + self.dates == n {
            "datetime"
        } else {
            "string"
        }
    }

    pub fn write(mut self, out: &mut Writer, top: usize) {
        let kind = self.kind();
        out.open('{');
        out.key("name").string(&self.name);
        out.key("type").string(kind);
        out.key("count").number(self.count as f64);
        out.key("nulls").number(self.nulls as f64);
        out.key("distinct").number(self.distinct.len() as f64);
        if self.distinct_full {
            out.key("distinct_is_at_least").word("true");
        }
        match kind {
            "integer" | "number" => self.write_numbers(out, kind == "integer"),
            "date" | "datetime" => {
                out.key("min").string(&self.text_min);
                out.key("max").string(&self.text_max);
            }
            "string" => {
                out.key("length_min").number(self.length_min as f64);
                out.key("length_max").number(self.length_max as f64);
            }
            _ => {}
        }
        let mut by_count: Vec<(&String, &u64)> = self.distinct.iter().collect();
        by_count.sort_by(|a, b| b.1.cmp(a.1)); // stable: equal counts stay in the order of their text
        out.key("top").open('[');
        for (value, times) in by_count.into_iter().take(top) {
            out.item().open('{');
            out.key("value").string(value);
            out.key("count").number(*times as f64);
            out.close('}');
        }
        out.close(']');
        out.close('}');
    }

    fn write_numbers(&mut self, out: &mut Writer, whole: bool) {
        let values = &mut self.values;
        values.sort_by(|a, b| a.total_cmp(b));
        let n = values.len() as f64;
        // Neumaier's sum, then the deviations from the mean: no cancellation on large offsets
        let sum = exact_sum(values.iter().copied());
        let mean = sum / n;
        let squares = exact_sum(values.iter().map(|v| (v - mean) * (v - mean)));
        if whole {
            out.key("min").word(&self.integer_min.to_string());
            out.key("max").word(&self.integer_max.to_string());
        } else {
            out.key("min").number(values[0]);
            out.key("max").number(values[values.len() - 1]);
        }
        out.key("sum").number(sum);
        out.key("mean").number(mean);
        let deviation = if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { f64::NAN };
        out.key("stddev").number(deviation); // of the sample; null for one value
        out.key("q1").number(quantile(values, 0.25));
        out.key("median").number(quantile(values, 0.5));
        out.key("q3").number(quantile(values, 0.75));
    }
}

fn exact_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    for v in values {
        let next = sum + v;
        lost += if sum.abs() >= v.abs() { (sum - next) + v } else { (v - next) + sum };
        sum = next;
    }
    if lost.is_finite() {
        sum + lost
    } else {
        sum
    }
}

/// Linear interpolation between the closest ranks, as spreadsheets do.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = part * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    let share = at - below as f64;
    if share == 0.0 {
        return sorted[below];
    }
    sorted[below] * (1.0 - share) + sorted[above] * share
}

fn is_null(cell: &str) -> bool {
    cell.is_empty()
        || ["na", "n/a", "null", "none", "nan"].iter().any(|word| cell.eq_ignore_ascii_case(word))
}

fn is_boolean(cell: &str) -> bool {
    ["true", "false", "yes", "no"].iter().any(|word| cell.eq_ignore_ascii_case(word))
}

/// `007` is a name, not a number: a leading zero means that the zeros matter.
fn padded(digits: &str) -> bool {
    digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit()
}

fn integer(cell: &str) -> Option<i64> {
    cell.parse().ok()
}

fn number(cell: &str) -> Option<f64> {
    let digits = cell.strip_prefix(|c| c == '-' || c == '+').unwrap_or(cell);
    let first = digits.as_bytes().first()?;
    if !(first.is_ascii_digit() || *first == b'.') || padded(digits) {
        return None;
    }
    cell.parse::<f64>().ok().filter(|v| v.is_finite())
}

/// 1: `2024-02-29`; 2: that, then `T` or a space, a time of day and perhaps a zone; 0: neither.
fn date_kind(cell: &str) -> u8 {
    let b = cell.as_bytes();
    let two = |i: usize| -> u32 {
        match b.get(i..i + 2) {
            Some([x, y]) if x.is_ascii_digit() && y.is_ascii_digit() => {
                (x - b'0') as u32 * 10 + (y - b'0') as u32
            }
            _ => 99,
        }
    };
    if b.len() < 10 || b[4] != b'-' || b[7] != b'-' || !b[..4].iter().all(u8::is_ascii_digit) {
        return 0;
    }
    let (year, month, day) = (two(0) * 100 + two(2), two(5), two(8));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    };
    if day == 0 || day > days {
        return 0;
    }
    if b.len() == 10 {
        return 1;
    }
    if !(b[10] == b'T' || b[10] == b' ') || two(11) > 23 || b.get(13) != Some(&b':') || two(14) > 59 {
        return 0;
    }
    let mut i = 16;
    if b.get(i) == Some(&b':') {
        if two(i + 1) > 60 {
            return 0;
        }
        i += 3;
        if b.get(i) == Some(&b'.') {
            i += 1;
            while b.get(i).map_or(false, |c| c.is_ascii_digit()) {
                i += 1;
            }
        }
    }
    match &b[i..] {
        [] | [b'Z'] | [b'z'] => 2,
        [b'+' | b'-', ..] if two(i + 1) < 24 && b.len() == i + 6 && b[i + 3] == b':' && two(i + 4) < 60 => 2,
        _ => 0,
    }
}
