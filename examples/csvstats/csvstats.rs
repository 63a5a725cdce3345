//! csvstats - CSV on stdin, statistics of each column as JSON on stdout.
//!
//! RFC 4180 with what real files add: any of `, ; tab |` as the delimiter, bare CR or LF, rows
//! that are too short or too long. Nothing here depends on a hash seed, a clock or the order of
//! a map, so the same file gives the same bytes and the same fuel everywhere.

use std::io::{Read, Write};
use std::process::exit;

mod column;
mod csv;
mod json;

const INPUT_BYTES_MAX: u64 = 16 << 20;
const COLUMNS_MAX: usize = 4096;
const USAGE: &str = "usage: csvstats [--delimiter=,|;|tab|'|'] [--no-header] [--top=N]";

fn fail(code: i32, message: &str) -> ! {
    eprintln!("{}", message);
    exit(code)
}

struct Options {
    delimiter: Option<u8>,
    header: bool,
    top: usize,
}

fn options() -> Options {
    let mut out = Options { delimiter: None, header: true, top: 5 };
    for arg in std::env::args().skip(1) {
        if arg == "--no-header" {
            out.header = false;
        } else if let Some(name) = arg.strip_prefix("--delimiter=") {
            out.delimiter = Some(match name.as_bytes() {
                b"tab" => b'\t',
                [one] if *one > b' ' && *one < 0x7f && *one != b'"' => *one,
                _ => fail(2, USAGE),
            });
        } else if let Some(count) = arg.strip_prefix("--top=") {
            match count.parse::<usize>() {
                Ok(n) if n <= 100 => out.top = n,
                _ => fail(2, "--top is a number from 0 to 100"),
            }
        } else {
            fail(2, USAGE);
        }
    }
    out
}

fn main() {
    let options = options();
    let mut raw = Vec::new();
    if std::io::stdin().take(INPUT_BYTES_MAX + 1).read_to_end(&mut raw).is_err() {
        fail(1, "cannot read the input");
    }
    if raw.len() as u64 > INPUT_BYTES_MAX {
        fail(1, "the input is larger than 16 MiB");
    }
    let text = String::from_utf8_lossy(&raw);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let delimiter = options.delimiter.unwrap_or_else(|| csv::guess_delimiter(text));

    let mut reader = csv::Reader::new(text, delimiter);
    let mut columns: Vec<column::Column> = Vec::new();
    let (mut rows, mut short_rows, mut long_rows) = (0u64, 0u64, 0u64);
    let mut record = Vec::new();
    let mut first = true;
    loop {
        match reader.next(&mut record) {
            Ok(false) => break,
            Ok(true) => {}
            Err(message) => fail(1, &message),
        }
        if first {
            if record.len() > COLUMNS_MAX {
                fail(1, "more than 4096 columns");
            }
            for (i, cell) in record.iter().enumerate() {
                let name = if options.header { cell.trim() } else { "" };
                columns.push(column::Column::new(name, i));
            }
            first = false;
            if options.header {
                continue;
            }
        }
        rows += 1;
        short_rows += (record.len() < columns.len()) as u64;
        long_rows += (record.len() > columns.len()) as u64;
        for (i, column) in columns.iter_mut().enumerate() {
            match record.get(i) {
                Some(cell) => column.add(cell),
                None => column.add_missing(),
            }
        }
    }

    let mut out = json::Writer::new();
    out.open('{');
    out.key("rows").number(rows as f64);
    out.key("columns").number(columns.len() as f64);
    out.key("delimiter").string(&(delimiter as char).to_string());
    out.key("header").word(if options.header { "true" } else { "false" });
    out.key("short_rows").number(short_rows as f64);
    out.key("long_rows").number(long_rows as f64);
    out.key("stray_quotes").number(reader.stray_quotes as f64);
    out.key("stats").open('[');
    for column in columns {
        out.item();
        column.write(&mut out, options.top);
    }
    out.close(']');
    out.close('}');
    out.end_line();
    if std::io::stdout().write_all(out.text.as_bytes()).is_err() {
        fail(1, "cannot write the output");
    }
}
