//! Where seeds and workers stand, and how far they are from each other.

use serde::{Deserialize, Serialize};

/// A place in a cluster; what is not known is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Location {
    /// The largest part that is told apart, a data centre or an availability zone.
    pub zone: Option<String>,
    /// A part of the zone that shares a switch.
    pub rack: Option<String>,
    /// The machine.
    pub host: Option<String>,
}

/// How far a seed is from a worker, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// On the same machine.
    Host,
    /// In the same rack of the same zone.
    Rack,
    /// In the same zone.
    Zone,
    /// Elsewhere, or not known.
    Far,
}

impl Location {
    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// How far `other` is. What is not known on either side is never equal; a rack is one of its zone, so two
    /// racks of one name in two zones differ.
    pub fn distance(&self, other: &Self) -> Distance {
        let same = |a: &Option<String>, b: &Option<String>| a.is_some() && a == b;
        if same(&self.host, &other.host) {
            Distance::Host
        } else if self.zone == other.zone && same(&self.rack, &other.rack) {
            Distance::Rack
        } else if same(&self.zone, &other.zone) {
            Distance::Zone
        } else {
            Distance::Far
        }
    }

    /// This location, with what is not known in it taken from `other`.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            zone: self.zone.or_else(|| other.zone.clone()),
            rack: self.rack.or_else(|| other.rack.clone()),
            host: self.host.or_else(|| other.host.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> impl Strategy<Value = Location> {
        let name = || prop::option::of(prop_oneof![Just("a".to_owned()), Just("b".to_owned())]);
        (name(), name(), name()).prop_map(|(zone, rack, host)| Location { zone, rack, host })
    }

    #[test]
    fn racks_of_one_name_in_two_zones_are_far_apart() {
        let at = |zone: &str| Location { zone: Some(zone.into()), rack: Some("r1".into()), host: None };
        assert_eq!(at("a").distance(&at("a")), Distance::Rack);
        assert_eq!(at("a").distance(&at("b")), Distance::Far);
    }

    proptest! {
        #[test]
        fn distance_is_the_same_both_ways_and_unknown_is_far(a in place(), b in place()) {
            prop_assert_eq!(a.distance(&b), b.distance(&a));
            prop_assert_eq!(a.distance(&Location::default()), Distance::Far);
            if a.host.is_some() { prop_assert_eq!(a.distance(&a), Distance::Host); }
        }

        #[test]
        fn what_is_told_goes_before_what_is_assumed(a in place(), b in place()) {
            let both = a.clone().or(&b);
            prop_assert!(a.zone.is_none() || both.zone == a.zone);
            prop_assert!(a.zone.is_some() || both.zone == b.zone);
            prop_assert_eq!(both.is_unknown(), a.is_unknown() && b.is_unknown());
        }
    }
}
