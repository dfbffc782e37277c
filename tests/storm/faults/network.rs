//! A bad network between one daemon and the events: it cuts, delays and swallows.

use std::time::{Duration, Instant};

use super::{Fault, Storm};

/// The longest time for which the network refuses connections after a cut, or is slow.
const LONGEST_OUTAGE: Duration = Duration::from_secs(2);

/// The longest time that what was sent is on its way while the network is slow.
const LONGEST_DELAY: Duration = Duration::from_millis(300);

/// The network's faults that have landed on a connection.
#[derive(Debug, Default)]
pub struct NetworkTally {
    /// All connections were reset, and new ones refused for a while.
    pub cut: u32,
    /// All connections stayed up, and nothing came through any more.
    pub swallowed: u32,
    /// Everything took longer for a while.
    pub delayed: u32,
}

/// A fault that ends by itself.
pub(super) struct Outage {
    until: Instant,
}

impl Storm<'_> {
    /// Returns whether there was a connection to suffer, and no outage already.
    pub(super) fn strike_network(&mut self, fault: Fault) -> bool {
        let network = &self.world.network;
        let tally = network.tally();
        if tally.accepted == tally.ended || self.outage.is_some() {
            return false;
        }
        let until = Instant::now() + LONGEST_OUTAGE.mul_f64(self.rng.f64());
        let count = match fault {
            Fault::SwallowNetwork => {
                // For good: a client has to connect again.
                network.freeze();
                &mut self.tally.network.swallowed
            }
            Fault::DelayNetwork => {
                network.delay(LONGEST_DELAY.mul_f64(self.rng.f64()));
                self.outage = Some(Outage { until });
                &mut self.tally.network.delayed
            }
            _ => {
                network.refuse(true);
                network.reset();
                self.outage = Some(Outage { until });
                &mut self.tally.network.cut
            }
        };
        *count += 1;
        true
    }

    /// Ends an outage whose time is over.
    pub(super) fn restore_network(&mut self, now: Instant) {
        if self.outage.take_if(|outage| outage.until <= now).is_some() {
            self.world.network.refuse(false);
            self.world.network.delay(Duration::ZERO);
        }
    }
}
