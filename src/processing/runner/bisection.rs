//! Finding the event over which batches fail without naming it: batches get smaller until the event is alone in one.

/// How many events the next batch may have.
#[derive(Debug)]
pub(crate) struct Bisection {
    /// The size of a batch as it is configured.
    full: i64,
    /// The size of the next batch.
    size: i64,
    /// The failing event is among so many events after the position; `None`: no event is looked for.
    suspects: Option<i64>,
}

impl Bisection {
    pub(crate) fn new(full: i64) -> Self {
        Self { full, size: full, suspects: None }
    }

    /// The most events that the next batch may have.
    pub(crate) fn size(&self) -> i64 {
        self.size
    }

    /// Makes the next batch smaller, because a batch has failed. `false`: the batch had one event, so that is the one.
    pub(crate) fn halve(&mut self) -> bool {
        let divisible = self.size > 1;
        self.suspects = Some(self.size);
        self.size = (self.size / 2).max(1);
        divisible
    }

    /// Takes note that the position has moved over so many events.
    pub(crate) fn passed(&mut self, events: i64) {
        let left = self.suspects.map_or(0, |suspects| suspects - events);
        if left > 0 {
            (self.suspects, self.size) = (Some(left), (left / 2).max(1));
        } else {
            (self.suspects, self.size) = (None, self.full.min(self.size.saturating_mul(2)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many batches it takes until the event at this place, from 1, is alone.
    fn batches_until_found(place: i64, of: i64) -> i64 {
        let (mut bisection, mut passed) = (Bisection::new(of), 0);
        for batches in 1.. {
            let end = (passed + bisection.size()).min(of);
            if end < place {
                bisection.passed(end - passed);
                passed = end;
            } else if !bisection.halve() {
                assert_eq!(passed + 1, place);
                bisection.passed(1);
                return batches;
            }
        }
        unreachable!()
    }

    #[test]
    fn any_of_a_thousand_is_found_in_twelve_batches() {
        let most = (1..=1_000).map(|place| batches_until_found(place, 1_000)).max();
        assert_eq!(most, Some(12));
        assert_eq!(batches_until_found(1, 1), 1);
        // A batch that is not full costs the first halves.
        assert!(batches_until_found(3, 10) <= 5);
    }

    #[test]
    fn batches_grow_again_once_it_is_found() {
        let mut bisection = Bisection::new(1_000);
        while bisection.halve() {}
        let mut sizes = Vec::new();
        while bisection.size() < 1_000 {
            bisection.passed(bisection.size());
            sizes.push(bisection.size());
        }
        assert_eq!(sizes, [2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000]);
    }
}
