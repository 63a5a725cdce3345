//! Numbers of JSON as exact decimals: 1, 1.0 and 10e-1 are equal, and 0.3 is a multiple of 0.1.

use std::cmp::Ordering;

pub struct Number<'a> {
    pub text: &'a str,
    /// `mantissa * 10^exponent`, without zeros at its end; `None` past 36 digits.
    exact: Option<(i128, i32)>,
    approx: f64,
    whole: bool,
}

impl<'a> Number<'a> {
    /// From the text of a number that is known to be JSON's grammar.
    pub fn new(text: &'a str) -> Number<'a> {
        let (body, exponent) = match text.find(|c| c == 'e' || c == 'E') {
            Some(i) => (&text[..i], text[i + 1..].parse::<i64>().unwrap_or_else(|_| huge(&text[i + 1..]))),
            None => (text, 0),
        };
        let negative = body.starts_with('-');
        let body = body.trim_start_matches('-');
        let (left, right) = body.split_once('.').unwrap_or((body, ""));
        let mut digits: String = [left, right].concat();
        let mut exponent = exponent.saturating_sub(right.len() as i64);
        let kept = digits.trim_end_matches('0').len();
        exponent = exponent.saturating_add((digits.len() - kept) as i64);
        digits.truncate(kept);
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            exponent = 0;
        }
        let exponent = exponent.max(-1_000_000).min(1_000_000) as i32;
        let mantissa: Option<i128> = if digits.is_empty() {
            Some(0)
        } else if digits.len() <= 36 {
            digits.parse().ok()
        } else {
            None
        };
        Number {
            text,
            exact: mantissa.map(|m| (if negative { -m } else { m }, exponent)),
            approx: text.parse().unwrap_or(0.0),
            whole: exponent >= 0,
        }
    }

    pub fn is_integer(&self) -> bool {
        self.whole
    }

    /// For keywords that count: `minLength` and the like.
    pub fn as_count(&self) -> Option<usize> {
        if self.whole && self.approx >= 0.0 && self.approx < 4e9 {
            Some(self.approx as usize)
        } else {
            None
        }
    }

    pub fn compare(&self, other: &Number) -> Ordering {
        if let (Some(a), Some(b)) = (self.exact, other.exact) {
            if let Some((x, y)) = align(a, b) {
                return x.cmp(&y);
            }
        }
        self.approx.partial_cmp(&other.approx).unwrap_or(Ordering::Equal)
    }

    pub fn is_multiple_of(&self, step: &Number) -> bool {
        if let (Some(a), Some(b)) = (self.exact, step.exact) {
            if b.0 == 0 || a.0 == 0 {
                return a.0 == 0;
            }
            if let Some((x, y)) = align(a, b) {
                return x % y == 0;
            }
            // a much finer value than the step cannot be a multiple of it; a much coarser one
            // is when the step's own digits divide a power of ten
            if a.1 < b.1 {
                return false;
            }
            let mut rest = (a.0 % b.0, a.1 - b.1);
            while rest.1 > 0 && rest.0 != 0 {
                rest = (rest.0.checked_mul(10).map_or(1, |v| v % b.0), rest.1 - 1);
            }
            return rest.0 == 0;
        }
        let ratio = self.approx / step.approx;
        ratio == ratio.floor()
    }

    /// One spelling for equal numbers.
    pub fn canonical(&self) -> String {
        match self.exact {
            Some((mantissa, exponent)) => format!("{}e{}", mantissa, exponent),
            None => format!("{:e}", self.approx),
        }
    }
}

/// An exponent that does not fit an i64.
fn huge(exponent: &str) -> i64 {
    if exponent.starts_with('-') {
        i64::MIN / 2
    } else {
        i64::MAX / 2
    }
}

/// Both mantissas at the smaller of the two exponents, where that fits.
fn align(a: (i128, i32), b: (i128, i32)) -> Option<(i128, i128)> {
    let low = if a.0 == 0 {
        b.1
    } else if b.0 == 0 {
        a.1
    } else {
        a.1.min(b.1)
    };
    let scale = |(mantissa, exponent): (i128, i32)| {
        if mantissa == 0 {
            return Some(0);
        }
        10i128.checked_pow((exponent - low) as u32).and_then(|p| mantissa.checked_mul(p))
    };
    Some((scale(a)?, scale(b)?))
}
