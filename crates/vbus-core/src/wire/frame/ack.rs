//! Which packets came: ranges from the largest down, as in RFC 9000 §19.3.

use super::{ACK, ACK_ECN, Cursor, Malformed, RangeInclusive, varint};

/// Counts of packets that came with each mark of ECN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EcnCounts {
    /// Marked ECT(0).
    pub ect0: u64,
    /// Marked ECT(1).
    pub ect1: u64,
    /// Marked by a queue that was about to overflow.
    pub ce: u64,
}

/// Packets that came over a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// The path.
    pub path: u64,
    /// How long the largest waited for this, in microseconds.
    pub delay_us: u64,
    /// The packets, at least one.
    pub ranges: Ranges<'a>,
    /// Marks of all that came so far.
    pub ecn: Option<EcnCounts>,
}

impl Ack<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_ack(out, usize::MAX, self.path, self.delay_us, self.ranges.clone(), self.ecn);
    }
}

/// Ranges of packet numbers, from the largest down, none touching the next.
#[derive(Clone, Debug)]
pub struct Ranges<'a> {
    cursor: Cursor<'a>,
    /// The next range, and how many are after it.
    next: Option<(RangeInclusive<u64>, u64)>,
}

impl Ranges<'_> {
    /// The largest number of all.
    pub fn largest(&self) -> Option<u64> {
        self.next.as_ref().map(|(range, _)| *range.end())
    }

    fn following(&mut self, smallest: u64) -> Result<RangeInclusive<u64>, Malformed> {
        let wrong = self.cursor.malformed();
        // A gap of 0 leaves out one packet.
        let gap = self.cursor.varint()? + 2;
        let end = smallest.checked_sub(gap).ok_or(wrong)?;
        let start = end.checked_sub(self.cursor.varint()?).ok_or(wrong)?;
        Ok(start..=end)
    }
}

impl Iterator for Ranges<'_> {
    type Item = RangeInclusive<u64>;

    fn next(&mut self) -> Option<Self::Item> {
        let (range, more) = self.next.take()?;
        if more > 0 {
            let following = self.following(*range.start()).ok();
            self.next = following.map(|following| (following, more - 1));
        }
        Some(range)
    }
}

impl PartialEq for Ranges<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.clone().eq(other.clone())
    }
}

impl Eq for Ranges<'_> {}

pub(super) fn read<'a>(cursor: &mut Cursor<'a>, with_ecn: bool) -> Result<Ack<'a>, Malformed> {
    let (path, largest) = (cursor.varint()?, cursor.varint()?);
    let (delay_us, more) = (cursor.varint()?, cursor.varint()?);
    let first = largest.checked_sub(cursor.varint()?).ok_or_else(|| cursor.malformed())?..=largest;
    let ranges = Ranges { cursor: cursor.clone(), next: Some((first.clone(), more)) };
    let mut walk = ranges.clone();
    let mut smallest = *first.start();
    // Each takes two bytes at least, so a long count ends with the packet.
    for _ in 0..more {
        smallest = *walk.following(smallest)?.start();
    }
    *cursor = walk.cursor;
    let ecn = with_ecn
        .then(|| Ok(EcnCounts { ect0: cursor.varint()?, ect1: cursor.varint()?, ce: cursor.varint()? }))
        .transpose()?;
    Ok(Ack { path, delay_us, ranges, ecn })
}

/// Appends an acknowledgement of at most `room` bytes with as many ranges as go in, largest first. Whether any did.
pub fn write_ack(
    out: &mut Vec<u8>,
    room: usize,
    path: u64,
    delay_us: u64,
    ranges: impl Iterator<Item = RangeInclusive<u64>> + Clone,
    ecn: Option<EcnCounts>,
) -> bool {
    let Some(first) = ranges.clone().next() else { return false };
    let marks = ecn.map(|EcnCounts { ect0, ect1, ce }| [ect0, ect1, ce]);
    let marks_len: usize = marks.iter().flatten().map(|&mark| varint::len(mark)).sum();
    let fixed = [path, *first.end(), delay_us.min(varint::MAX)];
    let first_len = first.end() - first.start();
    // Two bytes for the count, which thus is at most 16383.
    let mut len = 1 + fixed.iter().map(|&value| varint::len(value)).sum::<usize>() + 2;
    len += varint::len(first_len) + marks_len;
    if len > room {
        return false;
    }
    let mut smallest = *first.start();
    let steps = ranges.skip(1).map(move |range| {
        let gap = (smallest - range.end()).saturating_sub(2);
        smallest = *range.start();
        (gap, range.end() - range.start())
    });
    let mut count = 0;
    for (gap, range) in steps.clone().take(0x3fff) {
        len += varint::len(gap) + varint::len(range);
        if len > room {
            break;
        }
        count += 1;
    }
    out.push(if ecn.is_some() { ACK_ECN } else { ACK });
    for value in fixed.into_iter().chain([count as u64, first_len]) {
        varint::write(out, value);
    }
    for (gap, range) in steps.take(count) {
        varint::write(out, gap);
        varint::write(out, range);
    }
    for mark in marks.iter().flatten() {
        varint::write(out, *mark);
    }
    true
}
