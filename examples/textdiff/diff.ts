// diff.ts - which lines of two documents differ: Myers' algorithm in linear space.

import { Text } from "./request";

/** A document as lines, each with the number of its class: equal lines have equal numbers. */
export class Lines {
  starts: StaticArray<i32> = [];
  classes: StaticArray<i32> = [];
  changed: StaticArray<u8> = [];
  count: i32 = 0;
  endsWithBreak: bool = false;

  constructor(public text: Text) {
    let n = 0;
    for (let i = 0; i < text.size; i++) n += (load<u8>(text.at + i) == 0x0a) as i32;
    this.endsWithBreak = text.size > 0 && load<u8>(text.at + text.size - 1) == 0x0a;
    if (text.size > 0 && !this.endsWithBreak) n++;
    this.count = n;
    this.starts = new StaticArray<i32>(n + 1);
    this.classes = new StaticArray<i32>(n);
    this.changed = new StaticArray<u8>(n);
    let line = 0;
    if (n > 0) this.starts[line++] = 0;
    for (let i = 0; i < text.size; i++) {
      if (load<u8>(text.at + i) == 0x0a && line <= n) this.starts[line++] = i + 1;
    }
    this.starts[n] = text.size;
  }

  /** Where line `i` starts. */
  at(i: i32): usize {
    return this.text.at + this.starts[i];
  }

  /** Its length without the line break. */
  length(i: i32): i32 {
    const end = this.starts[i + 1];
    return end - this.starts[i] - (!this.isOpen(i) as i32);
  }

  /** Whether it is a last line without a line break. */
  isOpen(i: i32): bool {
    return i + 1 == this.count && !this.endsWithBreak;
  }
}

// -- classes of equal lines ------------------------------------------------------------------------

@inline
function isSpace(c: u8): bool {
  return c == 0x20 || c == 0x09 || c == 0x0d;
}

/** Gives each line of both documents its class. */
class Classes {
  slots: StaticArray<i32>; // 0 is free, else class + 1
  mask: i32;
  sample: Array<i32> = []; // of each class: a line that has it
  hashes: Array<u32> = [];
  inA: Array<i32> = []; // how often
  inB: Array<i32> = [];

  constructor(
    private a: Lines,
    private b: Lines,
    private ignoreSpace: bool,
  ) {
    let room = 64;
    while (room < 2 * (a.count + b.count)) room *= 2;
    this.slots = new StaticArray<i32>(room);
    this.mask = room - 1;
  }

  /** Runs of white space count as one, at a line's end as none. */
  private hash(at: usize, size: i32): u32 {
    let h: u32 = 2166136261;
    const ignore = this.ignoreSpace;
    let gap = false;
    for (let i = 0; i < size; i++) {
      const c = load<u8>(at + i);
      if (ignore && isSpace(c)) {
        gap = true;
        continue;
      }
      if (gap) h = (h ^ 0x20) * 16777619;
      gap = false;
      h = (h ^ c) * 16777619;
    }
    return h ^ (h >> 15);
  }

  private same(x: usize, xSize: i32, y: usize, ySize: i32): bool {
    if (!this.ignoreSpace) return xSize == ySize && memory.compare(x, y, xSize) == 0;
    let i = 0;
    let k = 0;
    while (true) {
      const xi = i;
      const yk = k;
      while (i < xSize && isSpace(load<u8>(x + i))) i++;
      while (k < ySize && isSpace(load<u8>(y + k))) k++;
      if (i == xSize || k == ySize) return i == xSize && k == ySize;
      if (i > xi != k > yk) return false;
      if (load<u8>(x + i++) != load<u8>(y + k++)) return false;
    }
  }

  add(lines: Lines, isB: bool): void {
    for (let i = 0; i < lines.count; i++) {
      const at = lines.at(i);
      const size = lines.length(i);
      // a line without its line break is another line than the same one with it
      const open = !this.ignoreSpace && lines.isOpen(i);
      const hash = this.hash(at, size) ^ (open ? 0x9e3779b9 : 0);
      let slot = (hash as i32) & this.mask;
      let found = -1;
      for (; this.slots[slot] != 0; slot = (slot + 1) & this.mask) {
        const k = this.slots[slot] - 1;
        if (this.hashes[k] != hash) continue;
        // a sample below zero is a line of b
        const line = this.sample[k];
        const from = line >= 0 ? this.a : this.b;
        const index = line >= 0 ? line : -line - 1;
        if (!this.ignoreSpace && from.isOpen(index) != open) continue;
        if (this.same(at, size, from.at(index), from.length(index))) {
          found = k;
          break;
        }
      }
      if (found < 0) {
        found = this.sample.length;
        this.slots[slot] = found + 1;
        this.sample.push(isB ? -i - 1 : i);
        this.hashes.push(hash);
        this.inA.push(0);
        this.inB.push(0);
      }
      if (isB) this.inB[found]++;
      else this.inA[found]++;
      lines.classes[i] = found;
    }
  }
}

// -- Myers -----------------------------------------------------------------------------------------------

/** Steps after which a search takes the best split it has: keeps two unlike documents affordable. */
const STEPS_MAX = 1024;

class Myers {
  private forward: StaticArray<i32>;
  private backward: StaticArray<i32>;
  private offset: i32;
  private splitX: i32 = 0;
  private splitY: i32 = 0;

  constructor(
    private x: StaticArray<i32>,
    private xLine: StaticArray<i32>,
    private xChanged: StaticArray<u8>,
    private y: StaticArray<i32>,
    private yLine: StaticArray<i32>,
    private yChanged: StaticArray<u8>,
    n: i32,
    m: i32,
  ) {
    this.offset = m + 1;
    this.forward = new StaticArray<i32>(n + m + 3);
    this.backward = new StaticArray<i32>(n + m + 3);
  }

  /** Mark what differs between x[x0..x1) and y[y0..y1). */
  compare(x0: i32, x1: i32, y0: i32, y1: i32): void {
    while (true) {
      while (x0 < x1 && y0 < y1 && unchecked(this.x[x0] == this.y[y0])) x0++, y0++;
      while (x0 < x1 && y0 < y1 && unchecked(this.x[x1 - 1] == this.y[y1 - 1])) x1--, y1--;
      if (x0 == x1) {
        while (y0 < y1) this.yChanged[this.yLine[y0++]] = 1;
        return;
      }
      if (y0 == y1) {
        while (x0 < x1) this.xChanged[this.xLine[x0++]] = 1;
        return;
      }
      this.split(x0, x1, y0, y1);
      const sx = this.splitX;
      const sy = this.splitY;
      // recurse into the smaller part, so that the stack stays shallow
      if (sx - x0 + sy - y0 < x1 - sx + y1 - sy) {
        this.compare(x0, sx, y0, sy);
        x0 = sx;
        y0 = sy;
      } else {
        this.compare(sx, x1, sy, y1);
        x1 = sx;
        y1 = sy;
      }
    }
  }

  /** A point on a shortest path (or, past STEPS_MAX, on a good one) that is not a corner. */
  private split(x0: i32, x1: i32, y0: i32, y1: i32): void {
    const f = this.forward;
    const b = this.backward;
    const o = this.offset;
    const low = x0 - y1;
    const high = x1 - y0;
    const fMid = x0 - y0;
    const bMid = x1 - y1;
    const odd = ((fMid - bMid) & 1) != 0;
    let fMin = fMid;
    let fMax = fMid;
    let bMin = bMid;
    let bMax = bMid;
    unchecked((f[o + fMid] = x0));
    unchecked((b[o + bMid] = x1));
    for (let steps = 1; ; steps++) {
      if (fMin > low) unchecked((f[o + --fMin - 1] = -1));
      else fMin++;
      if (fMax < high) unchecked((f[o + ++fMax + 1] = -1));
      else fMax--;
      for (let d = fMax; d >= fMin; d -= 2) {
        const left = unchecked(f[o + d - 1]);
        const right = unchecked(f[o + d + 1]);
        let x = left >= right ? left + 1 : right;
        let y = x - d;
        while (x < x1 && y < y1 && unchecked(this.x[x] == this.y[y])) x++, y++;
        unchecked((f[o + d] = x));
        if (odd && bMin <= d && d <= bMax && unchecked(b[o + d]) <= x) {
          this.splitX = x;
          this.splitY = y;
          return;
        }
      }
      if (bMin > low) unchecked((b[o + --bMin - 1] = i32.MAX_VALUE));
      else bMin++;
      if (bMax < high) unchecked((b[o + ++bMax + 1] = i32.MAX_VALUE));
      else bMax--;
      for (let d = bMax; d >= bMin; d -= 2) {
        const left = unchecked(b[o + d - 1]);
        const right = unchecked(b[o + d + 1]);
        let x = left < right ? left : right - 1;
        let y = x - d;
        while (x > x0 && y > y0 && unchecked(this.x[x - 1] == this.y[y - 1])) x--, y--;
        unchecked((b[o + d] = x));
        if (!odd && fMin <= d && d <= fMax && x <= unchecked(f[o + d])) {
          this.splitX = x;
          this.splitY = y;
          return;
        }
      }
      if (steps < STEPS_MAX) continue;
      let best = -1;
      for (let d = fMax; d >= fMin; d -= 2) {
        let x = unchecked(f[o + d]);
        if (x > x1) x = x1;
        let y = x - d;
        if (y > y1) {
          y = y1;
          x = y + d;
        }
        if (x + y > best && x >= x0 && y >= y0) {
          best = x + y;
          this.splitX = x;
          this.splitY = y;
        }
      }
      return;
    }
  }
}

// -- the whole -------------------------------------------------------------------------------------------

/** A run of changes slides down as far as it can, where the other side has none: braces stay whole. */
function slide(one: Lines, other: Lines): void {
  let i = 0;
  let k = 0;
  while (i < one.count) {
    let clean = true;
    while (k < other.count && other.changed[k] != 0) {
      k++;
      clean = false;
    }
    if (one.changed[i] == 0) {
      i++;
      k++;
      continue;
    }
    let start = i;
    while (i < one.count && one.changed[i] != 0) i++;
    while (clean && i < one.count && one.classes[start] == one.classes[i] && k < other.count) {
      if (k + 1 < other.count && other.changed[k + 1] != 0) break;
      one.changed[start++] = 0;
      one.changed[i++] = 1;
      k++;
      while (i < one.count && one.changed[i] != 0) i++;
    }
  }
}

/** Marks in both documents the lines that the other one lacks. */
export function diff(a: Lines, b: Lines, ignoreSpace: bool): void {
  const classes = new Classes(a, b, ignoreSpace);
  classes.add(a, false);
  classes.add(b, true);
  // lines that the other side does not have at all need no search
  const x = new StaticArray<i32>(a.count);
  const xLine = new StaticArray<i32>(a.count);
  const y = new StaticArray<i32>(b.count);
  const yLine = new StaticArray<i32>(b.count);
  let n = 0;
  let m = 0;
  for (let i = 0; i < a.count; i++) {
    if (classes.inB[a.classes[i]] == 0) {
      a.changed[i] = 1;
    } else {
      x[n] = a.classes[i];
      xLine[n++] = i;
    }
  }
  for (let i = 0; i < b.count; i++) {
    if (classes.inA[b.classes[i]] == 0) {
      b.changed[i] = 1;
    } else {
      y[m] = b.classes[i];
      yLine[m++] = i;
    }
  }
  new Myers(x, xLine, a.changed, y, yLine, b.changed, n, m).compare(0, n, 0, m);
  slide(a, b);
  slide(b, a);
}
