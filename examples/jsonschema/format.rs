//! The formats that `--format` checks. A format without a check here holds always.

pub fn holds(format: &str, text: &str) -> bool {
    match format {
        "date-time" => match text.find(|c| c == 'T' || c == 't') {
            Some(i) => is_date(&text[..i]) && is_time(&text[i + 1..]),
            None => false,
        },
        "date" => is_date(text),
        "time" => is_time(text),
        "email" => is_email(text),
        "ipv4" => is_ipv4(text),
        "ipv6" => is_ipv6(text),
        "hostname" => is_hostname(text),
        "uuid" => is_uuid(text),
        "uri" => is_uri(text),
        "json-pointer" => is_pointer(text),
        "regex" => crate::regex::Regex::new(text).is_ok(),
        _ => true,
    }
}

fn digits(text: &str, count: usize) -> Option<u32> {
    let ok = text.len() == count && text.bytes().all(|c| c.is_ascii_digit());
    ok.then(|| text.parse().ok()).flatten()
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.len() != 3 {
        return false;
    }
    match (digits(parts[0], 4), digits(parts[1], 2), digits(parts[2], 2)) {
        (Some(year), Some(month), Some(day)) => {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let days = match month {
                1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
                4 | 6 | 9 | 11 => 30,
                2 if leap => 29,
                2 => 28,
                _ => 0,
            };
            day >= 1 && day <= days
        }
        _ => false,
    }
}

/// RFC 3339, with its leap second: 23:59:60 in UTC only.
fn is_time(text: &str) -> bool {
    if !text.is_ascii() || text.len() < 9 {
        return false;
    }
    let part = |from: usize| digits(&text[from..from + 2], 2);
    let (hour, minute, second) = match (part(0), part(3), part(6)) {
        (Some(h), Some(m), Some(s)) if &text[2..3] == ":" && &text[5..6] == ":" => (h, m, s),
        _ => return false,
    };
    let mut zone = &text[8..];
    if let Some(fraction) = zone.strip_prefix('.') {
        zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
        if zone.len() == fraction.len() {
            return false;
        }
    }
    let offset = match zone.as_bytes() {
        [b'Z' | b'z'] => 0i32,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => match (digits(&zone[1..3], 2), digits(&zone[4..6], 2)) {
            (Some(h), Some(m)) if h < 24 && m < 60 => (h * 60 + m) as i32 * if *sign == b'+' { 1 } else { -1 },
            _ => return false,
        },
        _ => return false,
    };
    if second == 60 {
        let utc = ((hour * 60 + minute) as i32 - offset).rem_euclid(1440);
        return hour < 24 && minute < 60 && utc == 23 * 60 + 59;
    }
    hour < 24 && minute < 60 && second < 60
}

fn is_email(text: &str) -> bool {
    let (local, domain) = match text.rsplit_once('@') {
        Some(parts) => parts,
        None => return false,
    };
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    let dots = local.starts_with('.') || local.ends_with('.') || local.contains("..");
    let atoms = local.bytes().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&c));
    let literal = domain.strip_prefix('[').and_then(|d| d.strip_suffix(']'));
    let place = match literal {
        Some(address) => is_ipv4(address) || address.strip_prefix("IPv6:").map_or(false, is_ipv6),
        None => is_hostname(domain),
    };
    !local.is_empty() && (quoted || (!dots && atoms)) && place
}

fn is_ipv4(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 4
        && parts.iter().all(|p| {
            let plain = p.len() == 1 || !p.starts_with('0');
            p.len() <= 3 && plain && digits(p, p.len()).map_or(false, |v| v < 256)
        })
}

fn is_ipv6(text: &str) -> bool {
    let (head, tail) = match text.split_once("::") {
        Some((_, tail)) if tail.contains("::") => return false,
        Some((head, tail)) => (head, Some(tail)),
        None => (text, None),
    };
    let count = |part: &str| -> Option<usize> {
        if part.is_empty() {
            return Some(0);
        }
        let groups: Vec<&str> = part.split(':').collect();
        let mut n = 0;
        for (i, group) in groups.iter().enumerate() {
            if group.contains('.') && i + 1 == groups.len() && is_ipv4(group) {
                n += 2;
            } else if (1..=4).contains(&group.len()) && group.bytes().all(|c| c.is_ascii_hexdigit()) {
                n += 1;
            } else {
                return None;
            }
        }
        Some(n)
    };
    match (count(head), tail.map(count)) {
        (Some(n), None) => n == 8,
        // an IPv4 address can only stand at the very end
        (Some(n), Some(Some(m))) => n + m <= 7 && !head.contains('.'),
        _ => false,
    }
}

fn is_hostname(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            let ok = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
            ok && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        })
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == b'-',
            _ => c.is_ascii_hexdigit(),
        })
}

fn is_uri(text: &str) -> bool {
    let colon = match text.find(':') {
        Some(i) if i > 0 => i,
        _ => return false,
    };
    let scheme = text[..colon].bytes().all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c));
    let bytes = text.as_bytes();
    scheme
        && bytes[0].is_ascii_alphabetic()
        && bytes.iter().enumerate().all(|(i, &c)| match c {
            b'%' => bytes.get(i + 1..i + 3).map_or(false, |h| h.iter().all(u8::is_ascii_hexdigit)),
            c => c.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(&c),
        })
}

fn is_pointer(text: &str) -> bool {
    let tildes = || text.split('~').skip(1).all(|rest| rest.starts_with(|c| c == '0' || c == '1'));
    text.is_empty() || (text.starts_with('/') && tildes())
}
