//! How large a batch is while a processor is far behind: larger batches have fewer commits, and what is done once for a batch is done
//! less often. Near the head they are small again, so that a row is there soon.

use std::time::Duration;

use crate::processing::declaration::BatchLimits;

/// How long batches may take.
#[derive(Debug)]
struct Durations {
    /// How many times as large as a batch the next one is at most.
    steepest: u32,
    /// A batch that took less grows, so that the next one takes less than twice as long.
    short: Duration,
    /// A batch that took more shrinks: a status shows a position that moves each second, and whoever wants to stop waits for a batch.
    long: Duration,
}

/// Where whoever is given the events handles one after another.
const OUTSIDE: Durations =
    Durations { steepest: 4, short: Duration::from_millis(150), long: Duration::from_millis(400) };

/// Where statements in the database do. A row that they change again and again leaves its former states behind, which have to be
/// looked through until the commit: batches of 50,000 events of a to-do list cost an eighth more than those of 4,000.
const STATEMENTS: Durations = Durations { short: Duration::from_millis(40), ..OUTSIDE };

/// Where all events of a batch are folded: the more there are, the less each of them costs, also on the way there.
const FOLDED: Durations =
    Durations { steepest: 32, short: Duration::from_millis(400), long: Duration::from_millis(1_000) };

impl Durations {
    /// How many times as large the next batch is after a short one.
    fn growth(&self, took: Duration) -> i64 {
        let times = (2 * self.short).as_micros() / took.as_micros().max(1);
        1 << times.clamp(1, self.steepest.into()).ilog2()
    }
}

/// How many times the configured size the next batch may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth(i64);

impl Default for Growth {
    fn default() -> Self {
        Self(1)
    }
}

/// How the events of a batch are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By one statement for all of them, or a few.
    Folded,
    /// By statements in the database for each of them.
    Statements,
    /// By whoever is given them.
    Outside,
}

impl Way {
    fn durations(self) -> &'static Durations {
        match self {
            Self::Folded => &FOLDED,
            Self::Statements => &STATEMENTS,
            Self::Outside => &OUTSIDE,
        }
    }
}

/// What a batch has shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// How many events it was allowed to have.
    pub(super) size: i64,
    /// How many it had.
    pub(super) handled: i64,
    /// How many ids there are still up to the settled horizon, with or without events.
    pub(super) behind: i64,
    /// How long it took.
    pub(super) took: Duration,
    /// Whether a limit ended it, and not the ids that there were to look at.
    pub(super) is_cut: bool,
    pub(super) way: Way,
}

impl Growth {
    /// The most events that the next batch may have.
    pub(super) fn size(self, limits: &BatchLimits) -> i64 {
        limits.size.saturating_mul(self.0).min(limits.size_max.max(limits.size))
    }

    /// What follows from a batch that was committed without a failure. Of the sizes that would take in all that there is to do, the
    /// smallest is enough: events that arrive meanwhile need no larger one.
    pub(super) fn after(self, shown: Shown, limits: &BatchLimits) -> Self {
        let Shown { size, handled, behind, took, is_cut, way } = shown;
        let durations = way.durations();
        let may_grow = handled >= size && size < limits.size_max;
        let mut times = match took {
            // More events are too many bytes. A fold reads all that it may before it sees that. For others it need not mean that: a
            // program is given fewer events at first, and batches are read ahead while they are to be smaller.
            _ if way == Way::Folded && is_cut && handled < size => self.0.min(handled / limits.size.max(1)),
            took if took > durations.long => self.0 / 2,
            took if took < durations.short && may_grow => self.0.saturating_mul(durations.growth(took)),
            _ => self.0,
        };
        while times > 1 && Self(times / 2).size(limits) >= behind {
            times /= 2;
        }
        Self(times.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::declaration::FoldedLimits;

    const LIMITS: BatchLimits = BatchLimits {
        size: 1_000,
        size_max: 10_000,
        bytes: 1 << 24,
        time: Duration::from_secs(2),
        span: 100_000,
        folded: FoldedLimits { size: 250_000, bytes: 1 << 27, span: 1_000_000 },
    };

    fn full(size: i64, behind: i64, took_ms: u64) -> Shown {
        let took = Duration::from_millis(took_ms);
        Shown { size, handled: size, behind, took, is_cut: true, way: Way::Outside }
    }

    #[test]
    fn batches_grow_while_there_is_much_to_do_and_are_small_at_the_head() {
        let (mut growth, mut behind, mut sizes) = (Growth::default(), 60_000, Vec::new());
        while behind > 0 {
            let size = growth.size(&LIMITS).min(behind);
            behind -= size;
            sizes.push(size);
            growth = growth.after(full(growth.size(&LIMITS), behind, 5), &LIMITS);
        }
        assert_eq!(sizes, [1_000, 4_000, 10_000, 10_000, 10_000, 10_000, 10_000, 5_000]);
        assert_eq!(Growth(1).after(full(1_000, 1 << 30, 80), &LIMITS), Growth(2));
        let statements = |took_ms| Shown { way: Way::Statements, ..full(1_000, 1 << 30, took_ms) };
        assert_eq!(
            [8, 39, 41].map(|took_ms| Growth(1).after(statements(took_ms), &LIMITS)),
            [4, 2, 1].map(Growth)
        );
        assert_eq!(growth, Growth(1), "at the head");
        assert_eq!(Growth(8).after(full(8_000, 1_700, 5), &LIMITS), Growth(2));
    }

    #[test]
    fn batches_that_take_long_or_are_not_full_do_not_grow() {
        let grown = Growth(4);
        assert_eq!(grown.after(full(4_000, 1 << 30, 401), &LIMITS), Growth(2));
        assert_eq!(grown.after(full(4_000, 1 << 30, 200), &LIMITS), grown);
        let short = Shown { handled: 3_999, is_cut: false, ..full(4_000, 1 << 30, 5) };
        assert_eq!(grown.after(short, &LIMITS), grown);
        assert_eq!(grown.after(Shown { is_cut: true, ..short }, &LIMITS), grown, "a program is given fewer");
        let folded = Shown { is_cut: true, way: Way::Folded, ..short };
        assert_eq!(grown.after(folded, &LIMITS), Growth(3), "too many bytes");
        assert_eq!(Growth(1).after(full(1_000, 1 << 30, 9_000), &LIMITS), Growth(1));
    }

    #[test]
    fn a_size_that_is_set_is_not_exceeded() {
        let limits = BatchLimits { size_max: 1_000, ..LIMITS };
        assert_eq!(Growth(1).after(full(1_000, 1 << 30, 5), &limits), Growth(1));
        assert_eq!(Growth(8).size(&BatchLimits { size_max: 1, ..LIMITS }), 1_000);
    }

    #[test]
    fn folded_batches_take_longer_and_become_larger() {
        let grown = LIMITS.of_folded(16_000);
        assert_eq!((grown.size_max, grown.bytes, grown.span), (250_000, 1 << 27, 1_000_000));
        let usual = LIMITS.of_folded(1_000);
        assert_eq!((usual.size_max, usual.bytes, usual.span), (250_000, 1 << 24, 100_000));
        let folded = |took_ms| Shown { way: Way::Folded, ..full(16_000, 1 << 30, took_ms) };
        let after = |took_ms| Growth(16).after(folded(took_ms), &grown);
        assert_eq!([5, 90, 300, 900, 1_100].map(after), [512, 128, 32, 16, 8].map(Growth));
        let set = BatchLimits { folded: FoldedLimits { size: 2_000, bytes: 9, span: 9 }, ..LIMITS }
            .of_folded(9_000);
        assert_eq!((Growth(9).size(&set), set.bytes, set.span), (2_000, 1 << 24, 100_000));
    }
}
