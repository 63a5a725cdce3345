//! JSON Schema 2020-12: an instance against a schema, with every error and where it stands.

use crate::format;
use crate::json::{write_string, Object, Value};
use crate::number::Number;
use crate::refs::{base_of, Place, Registry};
use crate::regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const DEPTH_MAX: usize = 160;
const WORK_MAX: usize = 3_000_000_000;
const FINDINGS_MAX: usize = 20_000;
const FINDINGS_BYTES_MAX: usize = 32 << 20;
const PATH_BYTES_MAX: usize = 1 << 20;

/// One finding, in the words of the standard's output: both locations are JSON Pointers.
pub struct Finding {
    pub instance: String,
    pub keyword: String,
    pub error: String,
    bytes: usize,
}

/// What of the instance was looked at by keywords that passed; for `unevaluated*`.
#[derive(Default)]
struct Seen {
    properties: BTreeSet<usize>,
    items: BTreeSet<usize>,
}

impl Seen {
    fn add(&mut self, mut other: Seen) {
        self.properties.append(&mut other.properties);
        self.items.append(&mut other.items);
    }
}

pub struct Validator {
    registry: Registry,
    patterns: BTreeMap<&'static str, Rc<Regex>>,
    formats: bool,
    tracks: bool, // whether any schema asks what was evaluated
    scopes: Vec<String>,
    instance_path: String,
    keyword_path: String,
    depth: usize,
    work: usize,
    pub findings: Vec<Finding>,
    findings_bytes: usize,
    /// Findings past what is kept.
    pub dropped: usize,
}

/// The schema itself is at fault, or asks for too much: no verdict.
type Outcome<T> = Result<T, String>;

impl Validator {
    pub fn new(schema: &'static Value, others: Option<&'static Value>, formats: bool) -> Validator {
        Validator {
            registry: Registry::new(schema, others),
            patterns: BTreeMap::new(),
            formats,
            tracks: mentions_unevaluated(schema) || others.map_or(false, mentions_unevaluated),
            scopes: Vec::new(),
            instance_path: String::new(),
            keyword_path: String::new(),
            depth: 0,
            work: 0,
            findings: Vec::new(),
            findings_bytes: 0,
            dropped: 0,
        }
    }

    pub fn validate(&mut self, schema: &'static Value, instance: &Value) -> Outcome<bool> {
        self.check(schema, instance, "").map(|(ok, _)| ok)
    }

    // -- findings and paths -------------------------------------------------------------------------
    fn fail(&mut self, keyword: &str, error: String) -> bool {
        let bytes = self.instance_path.len() + self.keyword_path.len() + error.len() + 64;
        if self.findings.len() >= FINDINGS_MAX || self.findings_bytes + bytes > FINDINGS_BYTES_MAX {
            self.dropped += 1;
            return false;
        }
        self.findings_bytes += bytes;
        let mut location = self.keyword_path.clone();
        if !keyword.is_empty() {
            push_token(&mut location, keyword);
        }
        self.findings.push(Finding { instance: self.instance_path.clone(), keyword: location, error, bytes });
        false
    }

    /// Take back what was found since there were `start` findings: that branch did not matter.
    fn forget(&mut self, start: usize) {
        self.findings_bytes -= self.findings[start..].iter().map(|f| f.bytes).sum::<usize>();
        self.findings.truncate(start);
    }

    fn spend(&mut self, work: usize) -> Outcome<()> {
        self.work = self.work.saturating_add(work);
        if self.work > WORK_MAX {
            return Err("validating takes too many steps".into());
        }
        Ok(())
    }

    /// Check a part of the instance against a part of the schema, with the paths kept right.
    fn descend(
        &mut self,
        keyword: &[&str],
        part: Option<&str>,
        schema: &'static Value,
        instance: &Value,
        base: &str,
    ) -> Outcome<(bool, Seen)> {
        let (k, i) = (self.keyword_path.len(), self.instance_path.len());
        keyword.iter().for_each(|token| push_token(&mut self.keyword_path, token));
        if let Some(token) = part {
            push_token(&mut self.instance_path, token);
        }
        if self.keyword_path.len() + self.instance_path.len() > PATH_BYTES_MAX {
            return Err("a location is longer than 1 MiB".into());
        }
        let result = self.check(schema, instance, base);
        self.keyword_path.truncate(k);
        self.instance_path.truncate(i);
        result
    }

    fn pattern(&mut self, pattern: &'static str) -> Outcome<Rc<Regex>> {
        if let Some(known) = self.patterns.get(pattern) {
            return Ok(known.clone());
        }
        let made = Regex::new(pattern).map_err(|why| format!("pattern {}: {}", quoted(pattern), why))?;
        let made = Rc::new(made);
        self.patterns.insert(pattern, made.clone());
        Ok(made)
    }

    fn pattern_holds(&mut self, pattern: &'static str, text: &str) -> Outcome<bool> {
        let regex = self.pattern(pattern)?;
        self.spend(regex.cost(text.len()))?;
        Ok(regex.matches(text))
    }

    // -- one schema ------------------------------------------------------------------------------------
    fn check(&mut self, schema: &'static Value, instance: &Value, base: &str) -> Outcome<(bool, Seen)> {
        self.spend(1000)?;
        let object = match schema {
            Value::Bool(true) => return Ok((true, Seen::default())),
            Value::Bool(false) => {
                return Ok((self.fail("", "nothing is allowed here".into()), Seen::default()))
            }
            Value::Object(object) => object,
            _ => return Err(format!("{}: a schema is an object or a boolean", self.schema_place())),
        };
        if self.depth >= DEPTH_MAX {
            return Err("schema and instance are nested too deeply, or a $ref leads in a circle".into());
        }
        self.depth += 1;
        let base = base_of(schema, base);
        let scoped = self.scopes.last() != Some(&base);
        if scoped {
            self.scopes.push(base.clone());
        }
        let mut seen = Seen::default();
        let mut ok = self.references(object, instance, &base, &mut seen)?;
        ok &= self.values(object, instance)?;
        ok &= self.combinations(object, instance, &base, &mut seen)?;
        match instance {
            Value::Object(entries) => ok &= self.object(object, entries, instance, &base, &mut seen)?,
            Value::Array(items) => ok &= self.array(object, items, &base, &mut seen)?,
            _ => {}
        }
        if scoped {
            self.scopes.pop();
        }
        self.depth -= 1;
        Ok((ok, seen))
    }

    fn schema_place(&self) -> String {
        if self.keyword_path.is_empty() {
            "the schema".to_string()
        } else {
            format!("the schema at {}", self.keyword_path)
        }
    }

    fn references(
        &mut self,
        schema: &'static Object,
        instance: &Value,
        base: &str,
        seen: &mut Seen,
    ) -> Outcome<bool> {
        let mut ok = true;
        for keyword in ["$ref", "$dynamicRef"] {
            let reference = match schema.get(keyword) {
                None => continue,
                Some(Value::String(text)) => text,
                Some(_) => return Err(format!("{}: {} is a string", self.schema_place(), keyword)),
            };
            let mut place = self.registry.resolve(base, reference).ok_or_else(|| {
                format!("{}: {} {} leads nowhere", self.schema_place(), keyword, quoted(reference))
            })?;
            if keyword == "$dynamicRef" {
                place = self.outermost(place, reference);
            }
            let (good, more) = self.descend(&[keyword], None, place.schema, instance, &place.base)?;
            ok &= good;
            if good {
                seen.add(more);
            }
        }
        Ok(ok)
    }

    /// A dynamic reference leads to the outermost resource on the way here that has the anchor.
    fn outermost(&self, found: Place, reference: &str) -> Place {
        let name = reference.rsplit('#').next().unwrap_or("");
        let own = found.schema.get("$dynamicAnchor").and_then(Value::as_str);
        if own != Some(name) {
            return found;
        }
        self.scopes.iter().find_map(|scope| self.registry.dynamic(scope, name)).unwrap_or(found)
    }

    // -- keywords on any value ------------------------------------------------------------------------------
    fn values(&mut self, schema: &'static Object, instance: &Value) -> Outcome<bool> {
        let mut ok = true;
        if let Some(types) = schema.get("type") {
            let kind = instance.kind();
            let fits = |name: &str| name == kind || (name == "number" && kind == "integer");
            let (good, wanted) = match types {
                Value::String(name) => (fits(name), name.clone()),
                Value::Array(names) => {
                    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                    (names.iter().any(|name| fits(name)), names.join(" or "))
                }
                _ => return Err(format!("{}: type is a name or a list of names", self.schema_place())),
            };
            if !good {
                ok = self.fail("type", format!("is {}, not {}", kind, wanted));
            }
        }
        if let Some(Value::Array(values)) = schema.get("enum") {
            self.spend(values.len())?;
            if !values.iter().any(|v| v.equals(instance)) {
                ok = self.fail("enum", format!("is none of the {} values allowed", values.len()));
            }
        }
        if let Some(value) = schema.get("const") {
            if !value.equals(instance) {
                ok = self.fail("const", "is not the value wanted".into());
            }
        }
        match instance {
            Value::Number(text) => ok &= self.number(schema, &Number::new(text)),
            Value::String(text) => ok &= self.string(schema, text)?,
            _ => {}
        }
        Ok(ok)
    }

    fn number(&mut self, schema: &'static Object, n: &Number) -> bool {
        let mut ok = true;
        let limit = |keyword: &str| match schema.get(keyword) {
            Some(Value::Number(limit)) => Some(Number::new(limit)),
            _ => None,
        };
        if let Some(step) = limit("multipleOf") {
            if !n.is_multiple_of(&step) {
                ok = self.fail("multipleOf", format!("{} is not a multiple of {}", n.text, step.text));
            }
        }
        for (keyword, word) in [
            ("maximum", "more than"),
            ("exclusiveMaximum", "not less than"),
            ("minimum", "less than"),
            ("exclusiveMinimum", "not more than"),
        ] {
            if let Some(bound) = limit(keyword) {
                let order = n.compare(&bound);
                let good = match keyword {
                    "maximum" => order.is_le(),
                    "exclusiveMaximum" => order.is_lt(),
                    "minimum" => order.is_ge(),
                    _ => order.is_gt(),
                };
                if !good {
                    ok = self.fail(keyword, format!("{} is {} {}", n.text, word, bound.text));
                }
            }
        }
        ok
    }

    fn string(&mut self, schema: &'static Object, text: &str) -> Outcome<bool> {
        let mut ok = true;
        if schema.get("minLength").is_some() || schema.get("maxLength").is_some() {
            ok &= self.bounds(schema, "Length", text.chars().count(), "characters");
        }
        if let Some(Value::String(pattern)) = schema.get("pattern") {
            if !self.pattern_holds(pattern, text)? {
                ok = self.fail("pattern", format!("does not match {}", quoted(pattern)));
            }
        }
        if let (true, Some(Value::String(name))) = (self.formats, schema.get("format")) {
            self.spend(text.len())?;
            if !format::holds(name, text) {
                ok = self.fail("format", format!("is not a valid {}", name));
            }
        }
        Ok(ok)
    }

    /// `minX` and `maxX` on something that was counted.
    fn bounds(&mut self, schema: &'static Object, what: &str, have: usize, unit: &str) -> bool {
        let mut ok = true;
        for (side, word) in [("min", "fewer than"), ("max", "more than")] {
            let keyword = [side, what].concat();
            if let Some(Value::Number(bound)) = schema.get(&keyword) {
                let limit = Number::new(bound).as_count().unwrap_or(if side == "min" { 0 } else { usize::MAX });
                if (side == "min" && have < limit) || (side == "max" && have > limit) {
                    ok = self.fail(&keyword, format!("has {} {}, {} {}", have, unit, word, bound));
                }
            }
        }
        ok
    }

    // -- keywords that combine schemas ------------------------------------------------------------------------
    fn combinations(
        &mut self,
        schema: &'static Object,
        instance: &Value,
        base: &str,
        seen: &mut Seen,
    ) -> Outcome<bool> {
        let mut ok = true;
        for keyword in ["allOf", "anyOf", "oneOf"] {
            let ways = match schema.get(keyword) {
                Some(Value::Array(ways)) => ways,
                None => continue,
                Some(_) => return Err(format!("{}: {} is a list of schemas", self.schema_place(), keyword)),
            };
            let start = self.findings.len();
            let mut passed = Vec::new();
            for (i, way) in ways.iter().enumerate() {
                let (good, more) = self.descend(&[keyword, &i.to_string()], None, way, instance, base)?;
                if good {
                    passed.push(i.to_string());
                    seen.add(more);
                }
            }
            let n = passed.len();
            let good = match keyword {
                "allOf" => n == ways.len(),
                "anyOf" => n > 0,
                _ => n == 1,
            };
            if good {
                self.forget(start);
            } else if keyword == "oneOf" && n > 1 {
                self.forget(start);
                ok = self.fail(keyword, format!("matches {} of the schemas, not one", passed.join(" and ")));
            } else if keyword == "allOf" {
                ok = false; // the findings inside say it all
            } else {
                ok = self.fail(keyword, format!("matches none of the {} schemas", ways.len()));
            }
        }
        if let Some(not) = schema.get("not") {
            let start = self.findings.len();
            let (good, _) = self.descend(&["not"], None, not, instance, base)?;
            self.forget(start);
            if good {
                ok = self.fail("not", "matches the schema that it must not match".into());
            }
        }
        if let Some(condition) = schema.get("if") {
            let start = self.findings.len();
            let (holds, more) = self.descend(&["if"], None, condition, instance, base)?;
            self.forget(start);
            if holds {
                seen.add(more);
            }
            let branch = if holds { "then" } else { "else" };
            if let Some(then) = schema.get(branch) {
                let (good, more) = self.descend(&[branch], None, then, instance, base)?;
                ok &= good;
                if good {
                    seen.add(more);
                }
            }
        }
        Ok(ok)
    }

    // -- objects ---------------------------------------------------------------------------------------------------
    fn object(
        &mut self,
        schema: &'static Object,
        entries: &Object,
        instance: &Value,
        base: &str,
        seen: &mut Seen,
    ) -> Outcome<bool> {
        let mut ok = self.bounds(schema, "Properties", entries.entries.len(), "properties");
        if let Some(Value::Array(names)) = schema.get("required") {
            self.spend(names.len())?;
            for name in names.iter().filter_map(Value::as_str) {
                if entries.position(name).is_none() {
                    ok = self.fail("required", format!("lacks the property {}", quoted(name)));
                }
            }
        }
        if let Some(Value::Object(needs)) = schema.get("dependentRequired") {
            for (name, others) in &needs.entries {
                if let (true, Value::Array(others)) = (entries.position(name).is_some(), others) {
                    for other in others.iter().filter_map(Value::as_str) {
                        if entries.position(other).is_none() {
                            let error = format!("has {}, but lacks {}", quoted(name), quoted(other));
                            ok = self.fail("dependentRequired", error);
                        }
                    }
                }
            }
        }
        if let Some(Value::Object(needs)) = schema.get("dependentSchemas") {
            for (name, part) in &needs.entries {
                if entries.position(name).is_some() {
                    let (good, more) = self.descend(&["dependentSchemas", name], None, part, instance, base)?;
                    ok &= good;
                    if good {
                        seen.add(more);
                    }
                }
            }
        }
        let mut named: BTreeSet<usize> = BTreeSet::new();
        if let Some(Value::Object(parts)) = schema.get("properties") {
            for (name, part) in &parts.entries {
                if let Some(at) = entries.position(name) {
                    let value = &entries.entries[at].1;
                    ok &= self.descend(&["properties", name], Some(name), part, value, base)?.0;
                    named.insert(at);
                }
            }
        }
        if let Some(Value::Object(parts)) = schema.get("patternProperties") {
            for (pattern, part) in &parts.entries {
                for (at, (name, value)) in entries.entries.iter().enumerate() {
                    if self.pattern_holds(pattern, name)? {
                        ok &= self.descend(&["patternProperties", pattern], Some(name), part, value, base)?.0;
                        named.insert(at);
                    }
                }
            }
        }
        if let Some(part) = schema.get("additionalProperties") {
            ok &= self.rest("additionalProperties", part, entries, base, &named)?;
            named = (0..entries.entries.len()).collect();
        }
        if self.tracks {
            seen.properties.append(&mut named);
        }
        if let Some(part) = schema.get("unevaluatedProperties") {
            let known = std::mem::take(&mut seen.properties);
            ok &= self.rest("unevaluatedProperties", part, entries, base, &known)?;
            seen.properties = (0..entries.entries.len()).collect();
        }
        if let Some(part) = schema.get("propertyNames") {
            for (name, _) in &entries.entries {
                let start = self.findings.len();
                let as_value = Value::String(name.clone());
                let (good, _) = self.descend(&["propertyNames"], None, part, &as_value, base)?;
                for finding in &mut self.findings[start..] {
                    finding.error = format!("the name {} {}", quoted(name), finding.error);
                }
                ok &= good;
            }
        }
        Ok(ok)
    }

    /// The properties that nobody named, against the schema for those.
    fn rest(
        &mut self,
        keyword: &str,
        part: &'static Value,
        entries: &Object,
        base: &str,
        named: &BTreeSet<usize>,
    ) -> Outcome<bool> {
        let mut ok = true;
        for (at, (name, value)) in entries.entries.iter().enumerate() {
            if named.contains(&at) {
                continue;
            }
            if let Value::Bool(false) = part {
                ok = self.fail(keyword, format!("the property {} is not allowed", quoted(name)));
            } else {
                ok &= self.descend(&[keyword], Some(name), part, value, base)?.0;
            }
        }
        Ok(ok)
    }

    // -- arrays -----------------------------------------------------------------------------------------------------
    fn array(
        &mut self,
        schema: &'static Object,
        items: &[Value],
        base: &str,
        seen: &mut Seen,
    ) -> Outcome<bool> {
        let mut ok = self.bounds(schema, "Items", items.len(), "items");
        let mut done = 0;
        if let Some(Value::Array(parts)) = schema.get("prefixItems") {
            for (i, (part, item)) in parts.iter().zip(items).enumerate() {
                let index = i.to_string();
                ok &= self.descend(&["prefixItems", &index], Some(&index), part, item, base)?.0;
            }
            done = parts.len().min(items.len());
        }
        if let Some(part) = schema.get("items") {
            for (i, item) in items.iter().enumerate().skip(done) {
                ok &= self.descend(&["items"], Some(&i.to_string()), part, item, base)?.0;
            }
            done = items.len();
        }
        if self.tracks {
            seen.items.extend(0..done);
        }
        if let Some(part) = schema.get("contains") {
            ok &= self.contains(schema, part, items, base, seen)?;
        }
        if let Some(Value::Bool(true)) = schema.get("uniqueItems") {
            let mut known: BTreeMap<String, usize> = BTreeMap::new();
            for (i, item) in items.iter().enumerate() {
                let mut text = String::new();
                item.canonical(&mut text);
                self.spend(text.len())?;
                if let Some(first) = known.insert(text, i) {
                    ok = self.fail("uniqueItems", format!("items {} and {} are equal", first, i));
                }
            }
        }
        if let Some(part) = schema.get("unevaluatedItems") {
            for (i, item) in items.iter().enumerate() {
                if !seen.items.contains(&i) {
                    ok &= self.descend(&["unevaluatedItems"], Some(&i.to_string()), part, item, base)?.0;
                }
            }
            seen.items.extend(0..items.len());
        }
        Ok(ok)
    }

    fn contains(
        &mut self,
        schema: &'static Object,
        part: &'static Value,
        items: &[Value],
        base: &str,
        seen: &mut Seen,
    ) -> Outcome<bool> {
        let start = self.findings.len();
        let mut count = 0;
        for (i, item) in items.iter().enumerate() {
            if self.descend(&["contains"], Some(&i.to_string()), part, item, base)?.0 {
                count += 1;
                if self.tracks {
                    seen.items.insert(i);
                }
            }
        }
        self.forget(start);
        let bound = |keyword: &str| match schema.get(keyword) {
            Some(Value::Number(n)) => Number::new(n).as_count(),
            _ => None,
        };
        let (low, high) = (bound("minContains").unwrap_or(1), bound("maxContains"));
        let mut ok = true;
        if count < low {
            let keyword = if schema.get("minContains").is_some() { "minContains" } else { "contains" };
            ok = self.fail(keyword, format!("{} items match, at least {} must", count, low));
        }
        if high.map_or(false, |high| count > high) {
            let error = format!("{} items match, at most {} may", count, high.unwrap_or(0));
            ok = self.fail("maxContains", error);
        }
        Ok(ok)
    }
}

fn mentions_unevaluated(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().any(mentions_unevaluated),
        Value::Object(object) => object
            .entries
            .iter()
            .any(|(key, value)| key.starts_with("unevaluated") || mentions_unevaluated(value)),
        _ => false,
    }
}

fn push_token(path: &mut String, token: &str) {
    path.push('/');
    for c in token.chars() {
        match c {
            '~' => path.push_str("~0"),
            '/' => path.push_str("~1"),
            c => path.push(c),
        }
    }
}

/// In quotes, and not longer than a message can bear.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    if text.chars().count() > 80 {
        let start: String = text.chars().take(80).collect();
        write_string(&mut out, &(start + "..."));
    } else {
        write_string(&mut out, text);
    }
    out
}
