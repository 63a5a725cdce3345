// textdiff - {"a": "...", "b": "..."} on stdin, the unified diff from a to b on stdout.
//
// Options: --context=N (default 3), --ignore-space, --stat (only how much changed, as JSON)

import { Lines, diff } from "./diff";
import { Text, parseRequest } from "./request";
import { Bytes, USAGE, args, fail, readAll } from "./wasi";

const INPUT_BYTES_MAX = 4 << 20;
const USAGE_TEXT = "usage: textdiff [--context=0..1000] [--ignore-space] [--stat]";

function putLine(out: Bytes, mark: i32, lines: Lines, i: i32): void {
  out.byte(mark);
  out.copy(lines.at(i), lines.length(i));
  out.byte(0x0a);
  if (lines.isOpen(i)) out.text("\\ No newline at end of file\n");
  out.flush(65536);
}

/** `-3,4`; of one line only its number; of none the line before it. */
function range(first: i32, count: i32): string {
  const from = (count == 0 ? first : first + 1).toString();
  return count == 1 ? from : from + "," + count.toString();
}

function putName(out: Bytes, mark: string, name: Text | null, otherwise: string): void {
  out.text(mark);
  if (name !== null) {
    // a line break in a name would be a line of the diff
    for (let i = 0; i < name.size; i++) {
      const c = load<u8>(name.at + i);
      out.byte(c < 0x20 || c == 0x7f ? 0x3f : c);
    }
  } else {
    out.text(otherwise);
  }
  out.byte(0x0a);
}

function putHunks(out: Bytes, a: Lines, b: Lines, context: i32): void {
  let i = 0;
  let k = 0;
  while (i < a.count || k < b.count) {
    if (i < a.count && k < b.count && a.changed[i] == 0 && b.changed[k] == 0) {
      i++;
      k++;
      continue;
    }
    // a hunk: from `context` lines above this change to where twice as many are alike
    const before = min(context, i);
    const a0 = i - before;
    const b0 = k - before;
    let a1 = i;
    let b1 = k;
    let alike = 0;
    while (a1 < a.count || b1 < b.count) {
      const changed = (a1 < a.count && a.changed[a1] != 0) || (b1 < b.count && b.changed[b1] != 0);
      if (!changed && ++alike > 2 * context) break;
      if (changed) {
        alike = 0;
        while (a1 < a.count && a.changed[a1] != 0) a1++;
        while (b1 < b.count && b.changed[b1] != 0) b1++;
      } else {
        a1++;
        b1++;
      }
    }
    const after = alike > 2 * context ? context : min(alike, context);
    const drop = alike > 2 * context ? context : alike - after;
    a1 -= drop;
    b1 -= drop;
    out.text("@@ -" + range(a0, a1 - a0) + " +" + range(b0, b1 - b0) + " @@\n");
    let p = a0;
    let q = b0;
    while (p < a1 || q < b1) {
      if (p < a1 && a.changed[p] != 0) putLine(out, 0x2d, a, p++);
      else if (q < b1 && b.changed[q] != 0) putLine(out, 0x2b, b, q++);
      else {
        putLine(out, 0x20, a, p++);
        q++;
      }
    }
    i = a1;
    k = b1;
  }
}

function main(): void {
  let context = 3;
  let ignoreSpace = false;
  let stat = false;
  const options = args();
  for (let i = 0; i < options.length; i++) {
    const option = options[i];
    if (option == "--ignore-space") {
      ignoreSpace = true;
    } else if (option == "--stat") {
      stat = true;
    } else if (option.startsWith("--context=") && option.length > 10 && option.length < 15) {
      context = 0;
      for (let c = 10; c < option.length; c++) {
        const digit = option.charCodeAt(c) - 0x30;
        if (digit < 0 || digit > 9) fail(USAGE, USAGE_TEXT);
        context = context * 10 + digit;
      }
      if (context > 1000) fail(USAGE, USAGE_TEXT);
    } else {
      fail(USAGE, USAGE_TEXT);
    }
  }
  const request = parseRequest(readAll(INPUT_BYTES_MAX));
  const a = new Lines(request.a!);
  const b = new Lines(request.b!);
  diff(a, b, ignoreSpace);

  let removed = 0;
  let added = 0;
  for (let i = 0; i < a.count; i++) removed += a.changed[i];
  for (let i = 0; i < b.count; i++) added += b.changed[i];
  const out = new Bytes();
  if (stat) {
    out.text('{"lines_a": ' + a.count.toString() + ', "lines_b": ' + b.count.toString());
    out.text(', "removed": ' + removed.toString() + ', "added": ' + added.toString() + "}\n");
  } else if (removed + added > 0) {
    putName(out, "--- ", request.aName, "a");
    putName(out, "+++ ", request.bName, "b");
    putHunks(out, a, b, context);
  }
  out.flush(1);
}

main();
