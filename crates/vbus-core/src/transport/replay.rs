//! Which packets of a path came already: a window of bits that slides over their numbers (RFC 6479), and numbers
//! made whole again from their low bits (RFC 9000 A.3).

use crate::wire::packet::NUMBER_BITS;

/// Words of the window. One of them is always being cleared, so 8128 numbers behind the largest are told apart;
/// at 8 Gbit/s of 1350 bytes that is 11 ms of reordering.
const WORDS: usize = 128;
const BITS: u64 = u64::BITS as u64;
/// How far behind the largest number one may be and still be told.
pub const WIDTH: u64 = (WORDS as u64 - 1) * BITS;
/// No packet has a number from here on (RFC 9000 §12.3), so that arithmetic with numbers never overflows.
pub const NUMBER_END: u64 = 1 << 62;
/// So far a sender may be ahead of what was acknowledged: a quarter of what the bits tell apart, where RFC 9000 A.2
/// asks for less than half.
pub const AHEAD_MAX: u64 = 1 << (NUMBER_BITS - 2);

/// The numbers of a path's packets that came.
#[derive(Debug, Clone)]
pub struct Replay {
    words: [u64; WORDS],
    largest: Option<u64>,
}

impl Default for Replay {
    fn default() -> Self {
        Self { words: [0; WORDS], largest: None }
    }
}

impl Replay {
    /// The largest number that came.
    pub const fn largest(&self) -> Option<u64> {
        self.largest
    }

    /// The whole number of a packet that carries these low bits; `None`: no packet can have it.
    pub fn whole(&self, low: u32) -> Option<u64> {
        let number = whole(self.largest, u64::from(low), NUMBER_BITS);
        (number < NUMBER_END).then_some(number)
    }

    /// Whether a packet of this number would be the first, as far as is known. To be asked before it is opened.
    pub fn is_new(&self, number: u64) -> bool {
        let Some(largest) = self.largest else { return number < NUMBER_END };
        if number > largest {
            return number < NUMBER_END;
        }
        largest - number < WIDTH && self.words[index(number)] & bit(number) == 0
    }

    /// Notes a packet that opened, and says whether it was the first of its number. Only what opened: a forged
    /// number must not move the window.
    pub fn note(&mut self, number: u64) -> bool {
        if !self.is_new(number) {
            return false;
        }
        match self.largest {
            Some(largest) if number < largest => {}
            largest => {
                let from = largest.map_or(0, |largest| largest / BITS + 1);
                let to = number / BITS;
                // More than a whole turn clears everything, and once is enough.
                for word in from.max(to.saturating_sub(WORDS as u64 - 1))..=to {
                    self.words[(word % WORDS as u64) as usize] = 0;
                }
                self.largest = Some(number);
            }
        }
        self.words[index(number)] |= bit(number);
        true
    }
}

const fn index(number: u64) -> usize {
    (number / BITS % WORDS as u64) as usize
}

const fn bit(number: u64) -> u64 {
    1 << (number % BITS)
}

/// The number nearest to the one after `largest` that ends in these `bits`.
const fn whole(largest: Option<u64>, low: u64, bits: u32) -> u64 {
    let expected = match largest {
        Some(largest) => largest.saturating_add(1),
        None => 0,
    };
    let (window, half) = (1u64 << bits, 1u64 << (bits - 1));
    let candidate = (expected & !(window - 1)) | low;
    if candidate.saturating_add(half) <= expected && candidate < NUMBER_END - window {
        candidate + window
    } else if candidate > expected.saturating_add(half) && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LOW: u32 = (1 << NUMBER_BITS) - 1;

    #[test]
    fn numbers_are_made_whole_as_the_rfc_shows() {
        // RFC 9000 A.3: "if the highest successfully authenticated packet had a packet number of 0xa82f30ea, then
        // a packet containing a 16-bit value of 0x9b32 will be decoded as 0xa82f9b32".
        assert_eq!(whole(Some(0xa82f_30ea), 0x9b32, 16), 0xa82f_9b32);
        // RFC 9000 A.2 sends 0xac5c02 and 0xace8fe after 0xabe8b3 was acknowledged, by 16 and 24 bits.
        assert_eq!(whole(Some(0xabe8b3), 0x5c02, 16), 0xac5c02);
        assert_eq!(whole(Some(0xabe8b3), 0xace8fe, 24), 0xace8fe);
        // RFC 9001 A.5 has packet 654360564 with 3 bytes.
        assert_eq!(whole(Some(654_360_563), 654_360_564 & 0xff_ffff, 24), 654_360_564);
    }

    #[test]
    fn numbers_near_the_ends_stay_in_bounds() {
        assert_eq!(whole(None, u64::from(u32::MAX), 32), u64::from(u32::MAX));
        assert_eq!(whole(Some(3), 0xffff_ffff, 32), 0xffff_ffff, "nothing is before 0");
        assert_eq!(whole(Some(0xffff_fffe), 1, 32), 0x1_0000_0001);
        assert_eq!(whole(Some(0x1_0000_0001), 0xffff_fff0, 32), 0xffff_fff0);
        let replay = Replay { largest: Some(NUMBER_END - 1), ..Replay::default() };
        assert_eq!(replay.whole(0), None, "the last number was used");
        assert!(!replay.is_new(NUMBER_END));
    }

    #[test]
    fn a_packet_late_by_thousands_is_new_once_and_one_too_late_never() {
        let mut replay = Replay::default();
        assert!(replay.note(100_000));
        assert!(replay.note(100_000 - WIDTH + 1));
        assert!(!replay.note(100_000 - WIDTH + 1));
        assert!(!replay.note(100_000 - WIDTH));
        assert!(!replay.note(100_000));
        assert!(replay.note(100_000 + 10 * WIDTH));
        assert!(!replay.note(100_001));
    }

    fn walk() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            8 => 0i64..64,
            8 => -200i64..200,
            2 => -9000i64..9000,
            1 => 0i64..100_000,
        ];
        proptest::collection::vec(step, 1..400).prop_map(|steps| {
            let mut at = 10_000u64;
            steps
                .iter()
                .map(|&step| {
                    at = at.saturating_add_signed(step);
                    at
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn each_number_is_new_once_and_within_the_width_none_is_refused(numbers in walk()) {
            let mut replay = Replay::default();
            let mut seen = BTreeSet::new();
            for number in numbers {
                let within = seen.last().is_none_or(|&largest| number > largest || largest - number < WIDTH);
                let new = within && !seen.contains(&number);
                prop_assert_eq!(replay.is_new(number), new);
                prop_assert_eq!(replay.note(number), new);
                seen.insert(number);
                prop_assert_eq!(replay.largest(), seen.last().copied());
            }
        }

        #[test]
        fn any_number_within_half_a_window_is_made_whole(largest in 0u64..NUMBER_END - (1 << 25), away in -(1i64 << 23) + 2..1i64 << 23) {
            let Some(number) = largest.checked_add_signed(away) else { return Ok(()) };
            let replay = Replay { largest: Some(largest), ..Replay::default() };
            prop_assert_eq!(replay.whole(number as u32 & LOW), Some(number));
        }

        #[test]
        fn any_low_bits_after_any_number_are_harmless(largest: Option<u64>, low in 0..=LOW) {
            let mut replay = Replay { largest: largest.map(|largest| largest % NUMBER_END), ..Replay::default() };
            if let Some(number) = replay.whole(low) {
                prop_assert!(number < NUMBER_END && number as u32 & LOW == low);
                replay.note(number);
            }
        }
    }
}
