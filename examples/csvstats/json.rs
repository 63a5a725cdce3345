//! JSON out, two spaces a level. Only what this program needs.

pub struct Writer {
    pub text: String,
    depth: usize,
    fresh: bool, // nothing stands in the open object or array yet
}

impl Writer {
    pub fn new() -> Writer {
        Writer { text: String::new(), depth: 0, fresh: true }
    }

    fn new_line(&mut self) {
        self.text.push('\n');
        for _ in 0..self.depth {
            self.text.push_str("  ");
        }
    }

    pub fn open(&mut self, bracket: char) {
        self.text.push(bracket);
        self.depth += 1;
        self.fresh = true;
    }

    pub fn close(&mut self, bracket: char) {
        self.depth -= 1;
        if !self.fresh {
            self.new_line();
        }
        self.text.push(bracket);
        self.fresh = false;
    }

    /// What comes next is an element of the open array.
    pub fn item(&mut self) -> &mut Writer {
        if !self.fresh {
            self.text.push(',');
        }
        self.fresh = false;
        self.new_line();
        self
    }

    pub fn key(&mut self, name: &str) -> &mut Writer {
        self.item();
        self.string(name);
        self.text.push_str(": ");
        self
    }

    pub fn word(&mut self, word: &str) {
        self.text.push_str(word);
    }

    /// The shortest digits that read back as the same number.
    pub fn number(&mut self, value: f64) {
        let size = value.abs();
        if !value.is_finite() {
            self.word("null");
        } else if size != 0.0 && !(1e-6..1e17).contains(&size) {
            self.text.push_str(&format!("{:e}", value));
        } else {
            self.text.push_str(&format!("{}", value));
        }
    }

    pub fn string(&mut self, value: &str) {
        self.text.push('"');
        for c in value.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                c if (c as u32) < 0x20 => self.text.push_str(&format!("\\u{:04x}", c as u32)),
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    pub fn end_line(&mut self) {
        self.text.push('\n');
    }
}
