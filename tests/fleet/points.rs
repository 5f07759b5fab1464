//! Whether any point of a seed was somebody's twice at once, by what workers were told: without a clock of the planner's.

use std::collections::HashMap;

use rfork_protocol::v2::{Granted, SeedPhase};
use rfork_protocol::{LeaseId, SeedIdentity};
use tokio::time::Instant;

/// Leases that a seed has at once.
pub(crate) const CAPACITY: u32 = 1;
/// And the one that a loading seed lends to those alone whose source stalls.
pub(crate) const RESERVE: u32 = 1;

/// Who was granted a point last.
#[derive(Debug)]
struct Holder {
    lease: LeaseId,
    since_ms: u64,
    heard: Instant,
}

/// What was granted of each seed.
#[derive(Debug, Default)]
pub(crate) struct Points {
    holders: HashMap<(SeedIdentity, u32), Holder>,
}

impl Points {
    /// Takes in a grant, to somebody whose source stalls or not. `loaded_here`: whether that seed has ever loaded.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn granted(
        &mut self,
        granted: &Granted,
        heard: Instant,
        (stalls, loaded_here): (bool, bool),
    ) -> Result<(), String> {
        let seed = &granted.seed;
        let source =
            granted.source.as_ref().ok_or_else(|| format!("{seed} was granted, and nobody registered"))?;
        let point = source.point;
        let most = if stalls && loaded_here { CAPACITY + RESERVE } else { CAPACITY };
        if point.number >= most {
            return Err(format!("point {} of {seed}, beyond {most} (it stalls: {stalls})", point.number));
        }
        if source.phase == SeedPhase::Loading && !loaded_here {
            return Err(format!("{seed} has everything, and is said to load"));
        }
        let holder = Holder { lease: granted.lease_id.clone(), since_ms: point.since_ms, heard };
        match self.holders.get(&(seed.clone(), point.number)) {
            // Answers overtake each other.
            Some(last) if last.since_ms > holder.since_ms => return Ok(()),
            Some(last) if last.since_ms == holder.since_ms && last.lease != holder.lease => {
                return Err(format!(
                    "point {} of {seed} was granted to two at {}",
                    point.number, last.since_ms
                ));
            }
            _ => {}
        }
        self.holders.insert((seed.clone(), point.number), holder);
        Ok(())
    }

    /// Takes in that a lease on a point lives, as a renewal was answered that was sent then.
    ///
    /// Excluded: the point was another's by then, so that the seed had two readers in one place.
    ///
    /// # Errors
    /// When it was.
    pub(crate) fn lives(
        &self,
        (seed, point): (&SeedIdentity, u32),
        lease: &LeaseId,
        sent: Instant,
    ) -> Result<(), String> {
        match self.holders.get(&(seed.clone(), point)) {
            Some(last) if last.lease != *lease && last.heard < sent => {
                Err(format!("point {point} of {seed} is renewed by who had it before"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rfork_protocol::v2::{LeasedPoint, Source};

    use super::*;

    fn granted(lease: &str, number: u32, since_ms: u64) -> Granted {
        let point = LeasedPoint { number, since_ms };
        let source = Source { phase: SeedPhase::Loading, depth: 1, root: None, renew_after_ms: 1_000, point };
        Granted {
            lease_id: LeaseId::new(lease).unwrap(),
            seed: "10.0.0.1:20000:0".parse().unwrap(),
            ttl_ms: 1,
            waited_ms: 0,
            source: Some(source),
            pinned: None,
        }
    }

    #[test]
    fn a_point_that_is_two_workers_is_found() {
        let (mut points, now) = (Points::default(), Instant::now());
        let (first, second) = (granted("first", 0, 5), granted("second", 0, 6));
        assert_eq!(points.granted(&first, now, (false, true)), Ok(()));
        assert!(points.granted(&granted("other", 0, 5), now, (false, true)).is_err(), "in one moment");
        assert_eq!(points.granted(&second, now, (false, true)), Ok(()));
        let [before, after] = [now, now + std::time::Duration::from_millis(1)];
        let lives = |lease: &Granted, sent| points.lives((&lease.seed, 0), &lease.lease_id, sent);
        assert_eq!((lives(&second, after), lives(&first, before)), (Ok(()), Ok(())));
        assert!(lives(&first, after).is_err(), "both live");
    }

    #[test]
    fn a_point_beyond_the_capacity_is_for_those_alone_whose_source_stalls() {
        let (mut points, now) = (Points::default(), Instant::now());
        assert_eq!(points.granted(&granted("stalls", 1, 1), now, (true, true)), Ok(()));
        for (number, stalls, loaded_here) in [(1, false, true), (2, true, true), (1, true, false)] {
            assert!(points.granted(&granted("new", number, 2), now, (stalls, loaded_here)).is_err());
        }
    }
}
