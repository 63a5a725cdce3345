//! grep - search a document on stdin for a regular expression, line by line.
//!
//! usage: grep [options] [--] PATTERN
//!   -i ignore case      -w whole words       -F the pattern is plain text
//!   -v other lines      -c only count        -o only what matches
//!   -A N, -B N, -C N    lines of context behind, before, around
//!   -m N                stop behind N lines  --json one JSON object a line
//!
//! That nothing was found is an answer, not a failure: the exit code is 0 and the output is empty.

const guest = @import("guest.zig");
const regex = @import("regex.zig");

const input_max = 16 << 20;
const usage_text = "usage: grep [-ivwcoF] [-A N] [-B N] [-C N] [-m N] [--json] [--] PATTERN";

const Options = struct {
    pattern: []const u8 = "",
    ignore_case: bool = false,
    whole_words: bool = false,
    fixed: bool = false,
    invert: bool = false,
    count: bool = false,
    only: bool = false,
    json: bool = false,
    before: usize = 0,
    after: usize = 0,
    lines_max: usize = 1 << 31,
};

fn usage() noreturn {
    guest.fail(guest.usage, usage_text);
}

fn number(text: []const u8) usize {
    var value: usize = 0;
    if (text.len == 0 or text.len > 9) usage();
    for (text) |c| {
        if (c < '0' or c > '9') usage();
        value = value * 10 + (c - '0');
    }
    return value;
}

fn readOptions() Options {
    var o = Options{};
    var pattern: ?[]const u8 = null;
    var ended = false;
    const args = guest.args();
    var i: usize = 1;
    while (i < args.len) : (i += 1) {
        const arg = args[i];
        if (ended or arg.len < 2 or arg[0] != '-') {
            if (pattern != null) usage();
            pattern = arg;
        } else if (regex.same(arg, "--")) {
            ended = true;
        } else if (regex.same(arg, "--json")) {
            o.json = true;
        } else {
            var k: usize = 1;
            while (k < arg.len) : (k += 1) switch (arg[k]) {
                'i' => o.ignore_case = true,
                'w' => o.whole_words = true,
                'F' => o.fixed = true,
                'v' => o.invert = true,
                'c' => o.count = true,
                'o' => o.only = true,
                'n' => {}, // numbers always stand there
                'A', 'B', 'C', 'm' => {
                    // the number follows at once, or is the next argument
                    if (k + 1 == arg.len) i += 1;
                    if (i >= args.len) usage();
                    const n = number(if (k + 1 == arg.len) args[i] else arg[k + 1 ..]);
                    switch (arg[k]) {
                        'A' => o.after = n,
                        'B' => o.before = n,
                        'm' => o.lines_max = n,
                        else => {
                            o.after = n;
                            o.before = n;
                        },
                    }
                    break;
                },
                else => usage(),
            };
        }
    }
    o.pattern = pattern orelse usage();
    if (o.pattern.len > 4096) guest.fail(guest.usage, "pattern: is longer than 4096 bytes");
    return o;
}

// -- output ----------------------------------------------------------------------------------------------
fn putLine(number_of: usize, mark: []const u8, text: []const u8) void {
    guest.putNumber(number_of);
    guest.put(mark);
    guest.put(text);
    guest.put("\n");
}

fn putJsonString(text: []const u8) void {
    const hex = "0123456789abcdef";
    guest.put("\"");
    var at: usize = 0;
    while (at < text.len) {
        const char = guest.decode(text, at);
        switch (char.code) {
            '"' => guest.put("\\\""),
            '\\' => guest.put("\\\\"),
            '\t' => guest.put("\\t"),
            0...8, 10...0x1F, 0x7F => {
                guest.put("\\u00");
                guest.put(&.{ hex[char.code >> 4], hex[char.code & 15] });
            },
            else => guest.put(if (char.valid) text[at..][0..char.size] else "\u{FFFD}"),
        }
        at += char.size;
    }
    guest.put("\"");
}

fn putJsonLine(search: *regex.Regex, number_of: usize, text: []const u8, first: ?regex.Span) void {
    guest.put("{\"line\": ");
    guest.putNumber(number_of);
    guest.put(", \"matches\": [");
    var span = first;
    while (span) |s| {
        if (s.from != first.?.from) guest.put(", ");
        guest.put("{\"start\": ");
        guest.putNumber(s.from);
        guest.put(", \"end\": ");
        guest.putNumber(s.to);
        guest.put("}");
        span = nextMatch(search, text, s);
    }
    guest.put("], \"text\": ");
    putJsonString(text);
    guest.put("}\n");
}

/// Behind an empty match the search goes on one character further.
fn nextMatch(search: *regex.Regex, text: []const u8, last: regex.Span) ?regex.Span {
    var from = last.to;
    if (last.to == last.from) {
        if (from >= text.len) return null;
        from += guest.decode(text, from).size;
    }
    return if (from > text.len) null else search.find(text, from);
}

// -- the document, line by line ------------------------------------------------------------------------------
const Lines = struct {
    text: []const u8,
    at: usize = 0,

    fn next(self: *Lines) ?[]const u8 {
        if (self.at >= self.text.len) return null;
        const from = self.at;
        while (self.at < self.text.len and self.text[self.at] != '\n') self.at += 1;
        var end = self.at;
        self.at += 1;
        if (end > from and self.text[end - 1] == '\r') end -= 1;
        return self.text[from..end];
    }

    /// Back over `count` lines from the start of the line at `from`.
    fn back(text: []const u8, from: usize, count: usize) usize {
        var at = from;
        var left = count;
        while (left > 0 and at > 0) : (left -= 1) {
            at -= 1;
            while (at > 0 and text[at - 1] != '\n') at -= 1;
        }
        return at;
    }
};

fn run() void {
    const o = readOptions();
    var search = if (o.fixed)
        regex.Regex.literal(o.pattern, o.ignore_case, o.whole_words)
    else
        regex.Regex.init(o.pattern, o.ignore_case, o.whole_words);
    const document = guest.readAll(input_max);
    var lines = Lines{ .text = document };
    const context = !o.count and !o.only and !o.json and (o.before > 0 or o.after > 0);
    var number_of: usize = 0;
    var found: usize = 0;
    var shown: usize = 0; // the last line that was written
    var after_left: usize = 0;
    while (true) {
        const start = lines.at;
        const text = lines.next() orelse break;
        number_of += 1;
        if (found >= o.lines_max) {
            // only what context is still due
            if (after_left == 0) break;
        }
        const span = if (found >= o.lines_max) null else search.find(text, 0);
        if (found >= o.lines_max or (span != null) == o.invert) {
            if (context and after_left > 0) {
                putLine(number_of, "-", text);
                shown = number_of;
                after_left -= 1;
            }
            continue;
        }
        found += 1;
        if (o.count) continue;
        if (o.json) {
            putJsonLine(&search, number_of, text, span);
        } else if (o.only) {
            var each = span;
            while (each) |s| {
                if (s.to > s.from) putLine(number_of, ":", text[s.from..s.to]);
                each = nextMatch(&search, text, s);
            }
        } else {
            if (context) {
                const due = @min(o.before, number_of - 1 - shown);
                if (shown > 0 and number_of - due > shown + 1) guest.put("--\n");
                var above = Lines{ .text = document[0..start], .at = Lines.back(document, start, due) };
                var n = number_of - due;
                while (above.next()) |line| : (n += 1) putLine(n, "-", line);
            }
            putLine(number_of, ":", text);
            shown = number_of;
            after_left = o.after;
        }
    }
    if (o.count) {
        guest.putNumber(found);
        guest.put("\n");
    }
    guest.flush();
}

export fn _start() void {
    run();
}
