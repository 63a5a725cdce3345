//! Where references lead: `$id`, `$anchor`, `$dynamicAnchor` and JSON Pointers.

use crate::json::Value;
use std::collections::BTreeMap;

/// A schema and the URI that its own references are relative to.
#[derive(Clone)]
pub struct Place {
    pub schema: &'static Value,
    pub base: String,
}

#[derive(Default)]
pub struct Registry {
    resources: BTreeMap<String, Place>,
    anchors: BTreeMap<String, Place>, // "uri#name"
    dynamic: BTreeMap<String, Place>,
}

/// Keywords whose value is data, in which nothing is a schema.
const DATA: [&str; 4] = ["enum", "const", "default", "examples"];
/// Keywords whose value maps names to schemas: the names are no keywords.
const MAPS: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

impl Registry {
    /// `others`: an object of further schemas by URI, for references that lead outside.
    pub fn new(root: &'static Value, others: Option<&'static Value>) -> Registry {
        let mut registry = Registry::default();
        registry.add(root, "");
        if let Some(Value::Object(others)) = others {
            others.entries.iter().for_each(|(uri, schema)| registry.add(schema, uri.trim_end_matches('#')));
        }
        registry
    }

    fn add(&mut self, schema: &'static Value, uri: &str) {
        self.resources.insert(uri.to_string(), Place { schema, base: base_of(schema, uri) });
        self.walk(schema, uri.to_string());
    }

    fn walk(&mut self, schema: &'static Value, base: String) {
        match schema {
            Value::Array(items) => items.iter().for_each(|item| self.walk(item, base.clone())),
            Value::Object(object) => {
                let base = base_of(schema, &base);
                let place = || Place { schema, base: base.clone() };
                if object.get("$id").and_then(Value::as_str).is_some() {
                    self.resources.entry(base.clone()).or_insert_with(place);
                }
                if let Some(name) = object.get("$anchor").and_then(Value::as_str) {
                    self.anchors.entry(format!("{}#{}", base, name)).or_insert_with(place);
                }
                if let Some(name) = object.get("$dynamicAnchor").and_then(Value::as_str) {
                    self.anchors.entry(format!("{}#{}", base, name)).or_insert_with(place);
                    self.dynamic.entry(format!("{}#{}", base, name)).or_insert_with(place);
                }
                for (key, value) in &object.entries {
                    match value {
                        Value::Object(names) if MAPS.contains(&key.as_str()) => {
                            names.entries.iter().for_each(|(_, v)| self.walk(v, base.clone()))
                        }
                        _ if DATA.contains(&key.as_str()) => {}
                        _ => self.walk(value, base.clone()),
                    }
                }
            }
            _ => {}
        }
    }

    pub fn resolve(&self, base: &str, reference: &str) -> Option<Place> {
        let uri = join(base, reference);
        let (resource, fragment) = uri.split_once('#').unwrap_or((&uri, ""));
        if fragment.is_empty() || fragment.starts_with('/') {
            let start = self.resources.get(resource)?;
            return follow(start, fragment);
        }
        self.anchors.get(&uri).cloned()
    }

    /// The anchor `name` of one resource, if it was declared as a dynamic one.
    pub fn dynamic(&self, base: &str, name: &str) -> Option<Place> {
        self.dynamic.get(&format!("{}#{}", base, name)).cloned()
    }
}

/// The URI that holds inside `schema`, given the one around it.
pub fn base_of(schema: &Value, around: &str) -> String {
    match schema.get("$id").and_then(Value::as_str) {
        // a longer one is no address that anybody refers to, only memory
        Some(id) if id.len() > 4096 => around.to_string(),
        Some(id) => join(around, id).trim_end_matches('#').to_string(),
        None => around.to_string(),
    }
}

fn follow(start: &Place, pointer: &str) -> Option<Place> {
    let mut place = start.clone();
    for token in pointer.split('/').skip(1) {
        let token = percent_decode(token).replace("~1", "/").replace("~0", "~");
        place.schema = match place.schema {
            Value::Object(object) => object.get(&token)?,
            Value::Array(items) => items.get(token.parse::<usize>().ok()?)?,
            _ => return None,
        };
        place.base = base_of(place.schema, &place.base);
    }
    Some(place)
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let pair = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match pair.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) if bytes[i] == b'%' => {
                out.push(byte);
                i += 3;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// RFC 3986, section 5.2, for what schemas use.
fn join(base: &str, reference: &str) -> String {
    let base = base.split('#').next().unwrap_or("");
    if reference.is_empty() {
        return base.to_string();
    }
    if reference.starts_with('#') || base.is_empty() {
        return [base, reference].concat();
    }
    let scheme_end = |s: &str| {
        let colon = s.find(':')?;
        let ok = s[..colon].chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        (ok && s.starts_with(|c: char| c.is_ascii_alphabetic())).then(|| colon)
    };
    if scheme_end(reference).is_some() {
        return reference.to_string();
    }
    let scheme = scheme_end(base).map_or(0, |i| i + 1);
    if reference.starts_with("//") {
        return [&base[..scheme], reference].concat();
    }
    let path_start = match base[scheme..].strip_prefix("//") {
        Some(rest) => scheme + 2 + rest.find('/').unwrap_or(rest.len()),
        None => scheme,
    };
    let (path, fragment) = match reference.split_once('#') {
        Some((path, fragment)) => (path, Some(fragment)),
        None => (reference, None),
    };
    let merged = if path.starts_with('/') {
        path.to_string()
    } else {
        let folder = base[path_start..].rfind('/').map_or("/", |i| &base[path_start..path_start + i + 1]);
        [folder, path].concat()
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in merged.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut out = format!("{}/{}", &base[..path_start], parts.join("/"));
    if let Some(fragment) = fragment {
        out.push('#');
        out.push_str(fragment);
    }
    out
}
