//! jsonschema - {"schema": ..., "instance": ...} on stdin, the verdict with every error on stdout.
//!
//! JSON Schema 2020-12. Schemas that a `$ref` leads to outside come along in the request, by URI:
//! {"schemas": {"https://...": ...}}. Nothing is fetched. Each error has the JSON Pointer of the value at fault and that of the
//! keyword it breaks, named as in the standard's "basic" output.
//!
//! Options: --format        check `format` too (it only annotates otherwise, as the standard says)
//!          --max-errors=N  list no more than N errors (default 100, at most 10000)

use std::io::{Read, Write};
use std::process::exit;

mod format;
mod json;
mod number;
mod refs;
mod regex;
mod validate;

const INPUT_BYTES_MAX: u64 = 4 << 20;
const USAGE: &str = "usage: jsonschema [--format] [--max-errors=1..10000]";

fn fail(code: i32, message: &str) -> ! {
    eprintln!("{}", message);
    exit(code)
}

fn main() {
    let mut formats = false;
    let mut errors_max = 100;
    for arg in std::env::args().skip(1) {
        if arg == "--format" {
            formats = true;
        } else if let Some(n) = arg.strip_prefix("--max-errors=").and_then(|n| n.parse().ok()) {
            errors_max = n;
        } else {
            fail(2, USAGE);
        }
        if !(1..=10_000).contains(&errors_max) {
            fail(2, USAGE);
        }
    }
    let mut raw = Vec::new();
    if std::io::stdin().take(INPUT_BYTES_MAX + 1).read_to_end(&mut raw).is_err() {
        fail(1, "cannot read the input");
    }
    if raw.len() as u64 > INPUT_BYTES_MAX {
        fail(1, "the input is larger than 4 MiB");
    }
    let text = String::from_utf8(raw).unwrap_or_else(|_| fail(1, "the input is not UTF-8"));
    let request = json::parse(&text).unwrap_or_else(|why| fail(1, &why));
    // one run, then the module is gone: what was parsed may live to the end
    let request: &'static json::Value = Box::leak(Box::new(request));
    let (schema, instance) = match (request.get("schema"), request.get("instance")) {
        (Some(schema), Some(instance)) => (schema, instance),
        _ => fail(1, "the request is {\"schema\": ..., \"instance\": ...}"),
    };
    let mut validator = validate::Validator::new(schema, request.get("schemas"), formats);
    let valid = validator.validate(schema, instance).unwrap_or_else(|why| fail(1, &why));

    let mut out = format!("{{\n  \"valid\": {},\n  \"errors\": [", valid);
    for (i, finding) in validator.findings.iter().take(errors_max).enumerate() {
        out.push_str(if i > 0 { ",\n    {" } else { "\n    {" });
        for (name, value) in [
            ("instanceLocation", &finding.instance),
            ("keywordLocation", &finding.keyword),
            ("error", &finding.error),
        ] {
            out.push_str(if name == "instanceLocation" { "\n      " } else { ",\n      " });
            json::write_string(&mut out, name);
            out.push_str(": ");
            json::write_string(&mut out, value);
        }
        out.push_str("\n    }");
    }
    let more = validator.findings.len().saturating_sub(errors_max) + validator.dropped;
    out.push_str(if validator.findings.is_empty() { "]" } else { "\n  ]" });
    if more > 0 {
        out.push_str(&format!(",\n  \"more\": {}", more));
    }
    out.push_str("\n}\n");
    if std::io::stdout().write_all(out.as_bytes()).is_err() {
        fail(1, "cannot write the output");
    }
    exit(0)
}
