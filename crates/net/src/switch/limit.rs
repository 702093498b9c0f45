//! How much may pass a port. What passes may owe: the next packet waits until it is paid, so that on the whole exactly so
//! much passes, whatever sizes packets have.

use std::time::{Duration, Instant};
use viv_arch::virtio::net::HEADER_LEN;
use viv_model::NicLimits;

/// What may pass at once after a rest.
const BURST: Duration = Duration::from_millis(10);
/// While packets wait, time that the host did not give us is made up for, up to this.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Bytes that wait for a port with a limit are those of so much time: more is only delay.
const WAITING: Duration = Duration::from_millis(100);

/// So many units a second.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: u64,
    /// When all that has passed is paid.
    paid: Instant,
    /// What is owed beside, in units of 1/rate nanoseconds.
    rest: u64,
}

impl Bucket {
    fn new(rate: Option<u64>, now: Instant) -> Option<Bucket> {
        rate.filter(|rate| *rate > 0).map(|rate| Bucket { rate, paid: now, rest: 0 })
    }

    fn take(&mut self, units: usize, now: Instant) {
        self.forgive(now, LATE_MAX);
        let cost = units as u128 * 1_000_000_000 + u128::from(self.rest);
        let nanoseconds = cost / u128::from(self.rate);
        self.rest = u64::try_from(cost % u128::from(self.rate)).unwrap_or_default();
        self.paid += Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX >> 2));
    }

    /// Forgets what could have passed before, but for so much time.
    fn forgive(&mut self, now: Instant, but: Duration) {
        self.paid = now.checked_sub(but).map_or(self.paid, |earliest| self.paid.max(earliest));
    }
}

/// The limits of one way of a port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limiter {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Limiter {
    pub(super) fn new(limits: &NicLimits, now: Instant) -> Limiter {
        Limiter { bytes: Bucket::new(limits.bps, now), packets: Bucket::new(limits.pps, now) }
    }

    pub(super) fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.packets.is_none()
    }

    /// When the next packet may pass, if not now.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        let debts = [self.bytes, self.packets].into_iter().flatten().map(|bucket| bucket.paid);
        debts.max().filter(|paid| *paid > now)
    }

    /// A packet passes.
    pub(super) fn take(&mut self, packet: &[u8], now: Instant) {
        if let Some(bytes) = &mut self.bytes {
            bytes.take(packet.len().saturating_sub(HEADER_LEN), now);
        }
        if let Some(packets) = &mut self.packets {
            packets.take(1, now);
        }
    }

    /// No packet waits.
    pub(super) fn rest(&mut self, now: Instant) {
        [&mut self.bytes, &mut self.packets]
            .into_iter()
            .flatten()
            .for_each(|bucket| bucket.forgive(now, BURST));
    }

    /// Bytes that may wait, `most` without a limit.
    pub(super) fn waiting(&self, most: usize) -> usize {
        let share = |bucket: Bucket| u128::from(bucket.rate) * WAITING.as_millis() / 1000;
        let bytes = self.bytes.map(share).and_then(|bytes| usize::try_from(bytes).ok());
        bytes.unwrap_or(most).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes and packets that pass in `time` if packets of `len` bytes always wait, and are looked for every `step`.
    fn passed(limits: NicLimits, len: usize, time: Duration, step: Duration) -> (u64, u64) {
        let begin = Instant::now();
        let mut limiter = Limiter::new(&limits, begin);
        let packet = vec![0; HEADER_LEN + len];
        let (mut now, mut packets) = (begin, 0);
        while now < begin + time {
            while limiter.until(now).is_none() {
                limiter.take(&packet, now);
                packets += 1;
            }
            now += step;
        }
        (packets * len as u64, packets)
    }

    proptest! {
        /// Within one in a hundred, and the packet that owes.
        #[test]
        fn exactly_so_much_passes(
            bps in 100_000u64..1 << 30,
            pps in 100u64..100_000,
            len in 60usize..65_000,
            step_us in 1u64..20_000,
        ) {
            let time = Duration::from_secs(5);
            // However often it is looked at, and never more than by each limit alone.
            let step = Duration::from_micros(step_us.max(100));
            let late = step.as_secs_f64();
            let near = |is: u64, rate: u64, unit: u64| {
                let wanted = rate as f64 * 5.0;
                let slack = wanted * 0.01 + rate as f64 * late + unit as f64;
                assert!((is as f64 - wanted).abs() <= slack, "{is} for {wanted}, {slack}");
            };
            let bytes = passed(NicLimits { bps: Some(bps), pps: None }, len, time, step).0;
            near(bytes, bps, len as u64);
            let packets = passed(NicLimits { bps: None, pps: Some(pps) }, len, time, step).1;
            near(packets, pps, 1);
            let (both, count) = passed(NicLimits { bps: Some(bps), pps: Some(pps) }, len, time, step);
            prop_assert!(both <= bytes && count <= packets);
        }
    }

    #[test]
    fn a_rest_saves_up_a_burst_and_no_more() {
        let begin = Instant::now();
        let mut limiter = Limiter::new(&NicLimits { bps: None, pps: Some(1000) }, begin);
        let later = begin + Duration::from_secs(60);
        limiter.rest(later);
        let mut burst = 0;
        while limiter.until(later).is_none() {
            limiter.take(&[], later);
            burst += 1;
        }
        assert_eq!(burst, 11, "10 ms, and the one that owes");
    }
}
