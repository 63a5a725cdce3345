//! A small regular expression engine: parsed to a tree, compiled to steps, run over all its threads
//! at once (Thompson's way), so that no pattern is slower than its length times that of the text.
//! Of several matches the leftmost counts, of those that start there the longest.

const guest = @import("guest.zig");
const List = guest.List;

const steps_max = 20_000;
const depth_max = 100;
const repeat_max = 1000;

const Range = struct { low: u21, high: u21 };
const Class = struct { ranges: []const Range, negated: bool };

/// A place between characters: at a word's edge, not at one, behind or before what is no word.
const Edge = enum { at, not_at, opens, closes };

const Step = union(enum) {
    char: u21,
    class: Class,
    split: struct { a: u32, b: u32 },
    jump: u32,
    start,
    end,
    edge: Edge,
    match,
};

const Node = union(enum) {
    empty,
    char: u21,
    class: Class,
    start,
    end,
    edge: Edge,
    cat: struct { a: *const Node, b: *const Node },
    alt: struct { a: *const Node, b: *const Node },
    repeat: struct { one: *const Node, low: u32, high: ?u32 },
};

fn node(value: Node) *const Node {
    const made = &guest.alloc(Node, 1)[0];
    made.* = value;
    return made;
}

fn bad(message: []const u8) noreturn {
    guest.flush();
    guest.fail(guest.usage, message);
}

const digit = [_]Range{.{ .low = '0', .high = '9' }};
const word = [_]Range{
    .{ .low = '0', .high = '9' }, .{ .low = 'A', .high = 'Z' },
    .{ .low = '_', .high = '_' }, .{ .low = 'a', .high = 'z' },
    .{ .low = 0xC0, .high = 0xD6 }, .{ .low = 0xD8, .high = 0xF6 },
    .{ .low = 0xF8, .high = 0x1FFF }, .{ .low = 0x2C00, .high = 0xD7FF }, // letters, near enough
};
const space = [_]Range{
    .{ .low = '\t', .high = '\r' }, .{ .low = ' ', .high = ' ' }, .{ .low = 0xA0, .high = 0xA0 },
};
const line_end = [_]Range{.{ .low = '\n', .high = '\n' }};

// -- pattern to tree ----------------------------------------------------------------------------------
const Parser = struct {
    text: []const u8,
    at: usize = 0,

    fn peek(self: *Parser) ?u21 {
        return if (self.at < self.text.len) guest.decode(self.text, self.at).code else null;
    }

    fn next(self: *Parser) ?u21 {
        if (self.at >= self.text.len) return null;
        const char = guest.decode(self.text, self.at);
        self.at += char.size;
        return char.code;
    }

    fn take(self: *Parser, c: u21) bool {
        if (self.peek() != c) return false;
        _ = self.next();
        return true;
    }

    fn choice(self: *Parser, depth: u32) *const Node {
        if (depth > depth_max) bad("pattern: groups are nested too deeply");
        var ways = self.sequence(depth);
        while (self.take('|')) ways = node(.{ .alt = .{ .a = ways, .b = self.sequence(depth) } });
        return ways;
    }

    fn sequence(self: *Parser, depth: u32) *const Node {
        var parts = node(.empty);
        while (self.peek()) |c| {
            if (c == '|' or c == ')') break;
            const one = self.repeated(self.atom(depth));
            parts = if (parts.* == .empty) one else node(.{ .cat = .{ .a = parts, .b = one } });
        }
        return parts;
    }

    fn number(self: *Parser) ?u32 {
        var value: ?u32 = null;
        while (self.peek()) |c| {
            if (c < '0' or c > '9') break;
            value = @min((value orelse 0) * 10 + (c - '0'), repeat_max + 1);
            _ = self.next();
        }
        return value;
    }

    fn repeated(self: *Parser, first: *const Node) *const Node {
        var one = first;
        while (self.peek()) |c| {
            var low: u32 = 0;
            var high: ?u32 = null;
            switch (c) {
                '*' => {},
                '+' => low = 1,
                '?' => high = 1,
                '{' => {
                    const back = self.at;
                    _ = self.next();
                    const from = self.number();
                    high = if (self.take(',')) self.number() else from;
                    if (from == null or self.peek() != '}') {
                        self.at = back; // a brace that counts nothing is a brace
                        return one;
                    }
                    low = from.?;
                },
                else => return one,
            }
            _ = self.next();
            if (low > repeat_max or (high orelse low) > repeat_max or (high orelse low) < low)
                bad("pattern: repeats more than 1000 times, or backwards");
            one = node(.{ .repeat = .{ .one = one, .low = low, .high = high } });
        }
        return one;
    }

    fn atom(self: *Parser, depth: u32) *const Node {
        const c = self.next().?;
        switch (c) {
            '^' => return node(.start),
            '$' => return node(.end),
            '.' => return node(.{ .class = .{ .ranges = &line_end, .negated = true } }),
            '(' => {
                if (self.take('?') and !self.take(':')) bad("pattern: only (?: may follow a parenthesis");
                const inside = self.choice(depth + 1);
                if (!self.take(')')) bad("pattern: a group is never closed");
                return inside;
            },
            '[' => return self.class(),
            '\\' => return self.escape(),
            '*', '+', '?' => bad("pattern: nothing to repeat"),
            else => return node(.{ .char = c }),
        }
    }

    fn escape(self: *Parser) *const Node {
        const c = self.next() orelse bad("pattern: ends with a backslash");
        return node(switch (c) {
            'd' => .{ .class = .{ .ranges = &digit, .negated = false } },
            'D' => .{ .class = .{ .ranges = &digit, .negated = true } },
            'w' => .{ .class = .{ .ranges = &word, .negated = false } },
            'W' => .{ .class = .{ .ranges = &word, .negated = true } },
            's' => .{ .class = .{ .ranges = &space, .negated = false } },
            'S' => .{ .class = .{ .ranges = &space, .negated = true } },
            'b' => .{ .edge = .at },
            'B' => .{ .edge = .not_at },
            't' => .{ .char = '\t' },
            'r' => .{ .char = '\r' },
            'n' => .{ .char = '\n' },
            'x' => .{ .char = self.hex(2) },
            'u' => .{ .char = self.hex(4) },
            'a', 'c', 'e'...'m', 'o'...'q', 'v', 'y', 'z', 'A', 'C', 'E'...'R', 'T'...'V', 'X'...'Z', '0'...'9' => bad("pattern: this letter or digit means nothing behind a backslash"),
            else => .{ .char = c },
        });
    }

    fn hex(self: *Parser, count: usize) u21 {
        var code: u21 = 0;
        for (0..count) |_| {
            const c = self.next() orelse 0;
            code = code * 16 + switch (c) {
                '0'...'9' => c - '0',
                'a'...'f' => c - 'a' + 10,
                'A'...'F' => c - 'A' + 10,
                else => bad("pattern: hex digits are missing"),
            };
        }
        return code;
    }

    fn class(self: *Parser) *const Node {
        var ranges: List(Range) = .{};
        const negated = self.take('^');
        var first = true;
        while (true) {
            const c = self.next() orelse bad("pattern: a class is never closed");
            if (c == ']' and !first) break;
            first = false;
            if (c == '[' and self.peek() == ':') {
                self.named(&ranges);
                continue;
            }
            var low = c;
            if (c == '\\') {
                const inside = self.escape();
                switch (inside.*) {
                    .char => |one| low = one,
                    .edge => low = 8,
                    .class => |set| {
                        if (set.negated) complement(&ranges, set.ranges) else ranges.addAll(set.ranges);
                        continue;
                    },
                    else => unreachable,
                }
            }
            var high = low;
            const back = self.at;
            if (self.take('-')) {
                const last = self.next() orelse bad("pattern: a class is never closed");
                if (last == ']') {
                    self.at = back; // a dash in front of the end is a dash
                } else if (last == '\\') {
                    const inside = self.escape();
                    high = if (inside.* == .char) inside.char else bad("pattern: a range ends with a class");
                } else {
                    high = last;
                }
                if (high < low) bad("pattern: a range goes backwards");
            }
            ranges.add(.{ .low = low, .high = high });
        }
        return node(.{ .class = .{ .ranges = ranges.items, .negated = negated } });
    }

    /// `[:alpha:]` and its like, inside a class.
    fn named(self: *Parser, ranges: *List(Range)) void {
        const names = [_]struct { name: []const u8, set: []const u8 }{
            .{ .name = ":alpha:]", .set = "AZaz" }, .{ .name = ":digit:]", .set = "09" },
            .{ .name = ":alnum:]", .set = "09AZaz" }, .{ .name = ":upper:]", .set = "AZ" },
            .{ .name = ":lower:]", .set = "az" }, .{ .name = ":space:]", .set = "\t\r  " },
            .{ .name = ":xdigit:]", .set = "09AFaf" }, .{ .name = ":punct:]", .set = "!/:@[`{~" },
        };
        const rest = self.text[self.at..];
        for (names) |entry| {
            if (rest.len < entry.name.len or !same(rest[0..entry.name.len], entry.name)) continue;
            self.at += entry.name.len;
            var i: usize = 0;
            while (i < entry.set.len) : (i += 2) ranges.add(.{ .low = entry.set[i], .high = entry.set[i + 1] });
            return;
        }
        bad("pattern: no class has this name");
    }
};

pub fn same(a: []const u8, b: []const u8) bool {
    if (a.len != b.len) return false;
    for (a, b) |x, y| if (x != y) return false;
    return true;
}

/// Of the ranges of \d, \w and \s, which are sorted.
fn complement(out: *List(Range), set: []const Range) void {
    var from: u21 = 0;
    for (set) |range| {
        if (range.low > from) out.add(.{ .low = from, .high = range.low - 1 });
        from = range.high + 1;
    }
    out.add(.{ .low = from, .high = 0x10FFFF });
}

// -- characters ------------------------------------------------------------------------------------------
/// The other case of a letter: Latin, Greek and Cyrillic where the two are a fixed distance apart.
fn otherCase(c: u21) u21 {
    return switch (c) {
        'A'...'Z', 0xC0...0xD6, 0xD8...0xDE, 0x391...0x3A1, 0x3A3...0x3A9, 0x410...0x42F => c + 32,
        'a'...'z', 0xE0...0xF6, 0xF8...0xFE, 0x3B1...0x3C1, 0x3C3...0x3C9, 0x430...0x44F => c - 32,
        0x400...0x40F => c + 80,
        0x450...0x45F => c - 80,
        0x100...0x12F, 0x14A...0x177 => c ^ 1,
        else => c,
    };
}

fn holds(set: Class, c: u21) bool {
    for (set.ranges) |range| {
        if (range.low <= c and c <= range.high) return true;
    }
    return false;
}

fn isWord(c: ?u21) bool {
    return holds(.{ .ranges = &word, .negated = false }, c orelse return false);
}

// -- the engine ---------------------------------------------------------------------------------------------
pub const Span = struct { from: usize, to: usize };
const Thread = struct { step: u32, from: usize };

pub const Regex = struct {
    steps: List(Step) = .{},
    visits: u32 = 0,
    ignore_case: bool,
    first: ?u8 = null, // every match starts with this byte
    now: List(Thread) = .{},
    next: List(Thread) = .{},
    stack: List(u32) = .{},
    seen: []u32 = &.{},
    generation: u32 = 0,
    best: ?Span = null,
    /// Steps taken in all; past `work_max` the search gives up.
    work: u64 = 0,

    const work_max = 300_000_000;

    pub fn init(pattern: []const u8, ignore_case: bool, whole_words: bool) Regex {
        var parser = Parser{ .text = pattern };
        const tree = parser.choice(0);
        if (parser.at < pattern.len) bad("pattern: a ) closes nothing");
        var self = Regex{ .ignore_case = ignore_case };
        if (whole_words) _ = self.push(.{ .edge = .opens });
        self.compile(tree);
        if (whole_words) _ = self.push(.{ .edge = .closes });
        _ = self.push(.match);
        self.prepare();
        return self;
    }

    /// Every character stands for itself.
    pub fn literal(text: []const u8, ignore_case: bool, whole_words: bool) Regex {
        var self = Regex{ .ignore_case = ignore_case };
        if (whole_words) _ = self.push(.{ .edge = .opens });
        var at: usize = 0;
        while (at < text.len) {
            const char = guest.decode(text, at);
            _ = self.push(.{ .char = char.code });
            at += char.size;
        }
        if (whole_words) _ = self.push(.{ .edge = .closes });
        _ = self.push(.match);
        self.prepare();
        return self;
    }

    fn prepare(self: *Regex) void {
        self.seen = guest.alloc(u32, self.steps.items.len);
        @memset(self.seen, 0);
        const at: usize = if (self.steps.items[0] == .edge) 1 else 0;
        switch (self.steps.items[at]) {
            .char => |c| if (c < 128 and (!self.ignore_case or otherCase(c) == c)) {
                self.first = @intCast(c);
            },
            else => {},
        }
    }

    fn push(self: *Regex, step: Step) u32 {
        if (self.steps.items.len >= steps_max) bad("pattern: is too large");
        self.steps.add(step);
        return @intCast(self.steps.items.len - 1);
    }

    fn here(self: *Regex) u32 {
        return @intCast(self.steps.items.len);
    }

    fn compile(self: *Regex, tree: *const Node) void {
        self.visits += 1; // repeats of nothing make no steps, but take time
        if (self.visits > 10 * steps_max) bad("pattern: is too large");
        switch (tree.*) {
            .empty => {},
            .char => |c| _ = self.push(.{ .char = c }),
            .class => |set| _ = self.push(.{ .class = set }),
            .start => _ = self.push(.start),
            .end => _ = self.push(.end),
            .edge => |edge| _ = self.push(.{ .edge = edge }),
            .cat => |both| {
                self.compile(both.a);
                self.compile(both.b);
            },
            .alt => |both| {
                const split = self.push(.{ .jump = 0 });
                self.compile(both.a);
                const jump = self.push(.{ .jump = 0 });
                self.steps.items[split] = .{ .split = .{ .a = split + 1, .b = self.here() } };
                self.compile(both.b);
                self.steps.items[jump] = .{ .jump = self.here() };
            },
            .repeat => |r| {
                for (0..r.low) |_| self.compile(r.one);
                if (r.high) |high| {
                    var splits: List(u32) = .{};
                    for (r.low..high) |_| {
                        splits.add(self.push(.{ .jump = 0 }));
                        self.compile(r.one);
                    }
                    for (splits.items) |split|
                        self.steps.items[split] = .{ .split = .{ .a = split + 1, .b = self.here() } };
                } else {
                    const split = self.push(.{ .jump = 0 });
                    self.compile(r.one);
                    _ = self.push(.{ .jump = split });
                    self.steps.items[split] = .{ .split = .{ .a = split + 1, .b = self.here() } };
                }
            },
        }
    }

    /// Follow from `step` what needs no character; threads that wait for one go to `list`.
    fn follow(self: *Regex, list: *List(Thread), step: u32, from: usize, at: usize, before: ?u21, after: ?u21) void {
        self.stack.clear();
        self.stack.add(step);
        while (self.stack.items.len > 0) {
            const i = self.stack.items[self.stack.items.len - 1];
            self.stack.items.len -= 1;
            if (self.seen[i] == self.generation) continue;
            self.seen[i] = self.generation;
            self.work += 1;
            switch (self.steps.items[i]) {
                .char, .class => list.add(.{ .step = i, .from = from }),
                .jump => |to| self.stack.add(to),
                .split => |both| {
                    self.stack.add(both.b);
                    self.stack.add(both.a);
                },
                .start => if (before == null) self.stack.add(i + 1),
                .end => if (after == null) self.stack.add(i + 1),
                .edge => |edge| if (switch (edge) {
                    .at => isWord(before) != isWord(after),
                    .not_at => isWord(before) == isWord(after),
                    .opens => !isWord(before),
                    .closes => !isWord(after),
                }) self.stack.add(i + 1),
                .match => if (self.best == null or from < self.best.?.from or
                    (from == self.best.?.from and at > self.best.?.to))
                {
                    self.best = .{ .from = from, .to = at };
                },
            }
        }
    }

    fn accepts(self: *Regex, step: Step, c: u21) bool {
        switch (step) {
            .char => |want| return c == want or (self.ignore_case and otherCase(c) == want),
            .class => |set| return (holds(set, c) or (self.ignore_case and holds(set, otherCase(c)))) != set.negated,
            else => return false,
        }
    }

    /// The first match in `line` at or behind `start`; the longest one there.
    pub fn find(self: *Regex, line: []const u8, start: usize) ?Span {
        self.best = null;
        self.now.clear();
        var at = start;
        var before: ?u21 = if (start == 0) null else previous(line, start);
        while (true) {
            if (self.now.items.len == 0 and self.best == null) {
                if (self.first) |byte| {
                    const from = at;
                    while (at < line.len and line[at] != byte) at += 1;
                    self.work += (at - from) / 8;
                    if (at == line.len) return null;
                    if (at > from) before = previous(line, at);
                }
            }
            const char: ?guest.Char = if (at < line.len) guest.decode(line, at) else null;
            const after: ?u21 = if (char) |c| c.code else null;
            self.generation += 1;
            // threads wait at `next`'s steps; what they lead to is followed here, where both
            // neighbours are known
            self.next.clear();
            for (self.now.items) |thread| {
                if (self.best) |best| if (thread.from > best.from) continue;
                self.follow(&self.next, thread.step, thread.from, at, before, after);
            }
            if (self.best == null) self.follow(&self.next, 0, at, at, before, after);
            self.now.clear();
            const c = char orelse break;
            self.work += self.next.items.len + 1;
            if (self.work > work_max) {
                guest.flush();
                guest.fail(guest.refused, "the search takes too many steps");
            }
            for (self.next.items) |thread| {
                if (self.accepts(self.steps.items[thread.step], c.code))
                    self.now.add(.{ .step = thread.step + 1, .from = thread.from });
            }
            if (self.now.items.len == 0 and self.best != null) break;
            before = c.code;
            at += c.size;
        }
        return self.best;
    }
};

/// The character in front of `at`.
fn previous(line: []const u8, at: usize) u21 {
    var from = at - 1;
    while (from > 0 and at - from < 4 and line[from] & 0xC0 == 0x80) from -= 1;
    const char = guest.decode(line, from);
    return if (from + char.size == at) char.code else 0xFFFD;
}
