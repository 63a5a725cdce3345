//! Records and cells, one record at a time, borrowing from the input wherever that can be.

use std::borrow::Cow;

pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    delimiter: u8,
    /// Quotes inside an unquoted cell, or text behind a closing quote: kept as text, and counted.
    pub stray_quotes: u64,
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str, delimiter: u8) -> Reader<'a> {
        Reader { text, at: 0, line: 1, delimiter, stray_quotes: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next record that is not a blank line; `Ok(false)` at the end of the input.
    pub fn next(&mut self, record: &mut Vec<Cow<'a, str>>) -> Result<bool, String> {
        record.clear();
        while matches!(self.peek(), Some(b'\n' | b'\r')) {
            self.end_line();
        }
        if self.peek().is_none() {
            return Ok(false);
        }
        loop {
            let cell = self.cell()?;
            record.push(cell);
            match self.peek() {
                Some(c) if c == self.delimiter => self.at += 1,
                Some(_) => {
                    self.end_line();
                    return Ok(true);
                }
                None => return Ok(true),
            }
        }
    }

    /// Over one CRLF, LF or CR.
    fn end_line(&mut self) {
        if self.text.as_bytes()[self.at..].starts_with(b"\r\n") {
            self.at += 1;
        }
        self.at += 1;
        self.line += 1;
    }

    fn cell(&mut self) -> Result<Cow<'a, str>, String> {
        if self.peek() != Some(b'"') {
            return Ok(Cow::Borrowed(self.bare()));
        }
        let opened = self.line;
        self.at += 1;
        let mut from = self.at;
        let mut built = String::new();
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                None => return Err(format!("line {}: this quote is never closed", opened)),
                Some(b'"') if bytes.get(self.at + 1) == Some(&b'"') => {
                    built.push_str(&self.text[from..=self.at]);
                    self.at += 2;
                    from = self.at;
                }
                Some(b'"') => break,
                Some(&c) => {
                    self.line += (c == b'\n') as usize;
                    self.at += 1;
                }
            }
        }
        let last = &self.text[from..self.at];
        self.at += 1;
        let behind = self.bare();
        self.stray_quotes += !behind.is_empty() as u64;
        if built.is_empty() && behind.is_empty() {
            return Ok(Cow::Borrowed(last));
        }
        built.push_str(last);
        built.push_str(behind);
        Ok(Cow::Owned(built))
    }

    /// Text up to the next delimiter or line end. Those are ASCII, so the slice is on a boundary.
    fn bare(&mut self) -> &'a str {
        let from = self.at;
        let mut quote = false;
        while let Some(c) = self.peek() {
            if c == self.delimiter || c == b'\n' || c == b'\r' {
                break;
            }
            quote |= c == b'"';
            self.at += 1;
        }
        self.stray_quotes += quote as u64;
        &self.text[from..self.at]
    }
}

/// The delimiter that stands most often, outside quotes, in the first line.
pub fn guess_delimiter(text: &str) -> u8 {
    const CANDIDATES: [u8; 4] = [b',', b';', b'\t', b'|'];
    let mut counts = [0usize; 4];
    let mut quoted = false;
    for &c in text.trim_start_matches(&['\r', '\n'][..]).as_bytes() {
        if c == b'"' {
            quoted = !quoted;
        } else if !quoted && (c == b'\n' || c == b'\r') {
            break;
        } else if let (false, Some(i)) = (quoted, CANDIDATES.iter().position(|&d| d == c)) {
            counts[i] += 1;
        }
    }
    let mut best = 0;
    for i in 1..4 {
        if counts[i] > counts[best] {
            best = i;
        }
    }
    CANDIDATES[best]
}
