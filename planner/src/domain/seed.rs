//! What registering and removing a seed means, given what is known of it.

use rfork_protocol::SeedKey;

/// What the store knows of a seed when somebody speaks of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What it holds.
    pub key: SeedKey,
    /// Whether its owner has removed it while it still had leases.
    pub removed: bool,
    /// Leases on it that live.
    pub live_leases: u32,
}

/// What a registration or heartbeat does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// A seed that was not known: its whole capacity is free.
    New,
    /// It is still there, its leases kept; if it had fallen silent, it is offered again.
    Repeated,
    /// Its memory now holds something else: leases on what it held end, its whole capacity is free.
    NewHolding,
    /// It was removed and is not offered until its last lease has ended; registering it then makes it new.
    Draining,
}

/// Decides what registering `key` means for a seed that the store knows as `known`.
pub fn register(known: Option<&Known>, key: &SeedKey) -> Registration {
    match known {
        None => Registration::New,
        Some(known) if known.key != *key => Registration::NewHolding,
        Some(known) if known.removed && known.live_leases > 0 => Registration::Draining,
        Some(known) if known.removed => Registration::NewHolding,
        Some(_) => Registration::Repeated,
    }
}

/// What a removal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing: not known, or known under another key.
    Unknown,
    /// It is offered no more and goes when its last lease ends.
    Draining,
    /// It is gone.
    Gone,
}

/// Decides what removing the holding `key` means for a seed that the store knows as `known`.
pub fn remove(known: Option<&Known>, key: &SeedKey) -> Removal {
    match known {
        Some(known) if known.key == *key && known.live_leases > 0 => Removal::Draining,
        Some(known) if known.key == *key => Removal::Gone,
        _ => Removal::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known() -> impl Strategy<Value = Option<Known>> {
        prop::option::of((0u8..3, any::<bool>(), 0u32..3).prop_map(|(key, removed, live_leases)| Known {
            key: SeedKey::new([b'a' + key]).unwrap(),
            removed,
            live_leases,
        }))
    }

    proptest! {
        #[test]
        fn leases_end_early_only_when_the_memory_holds_something_else(known in known()) {
            let key = SeedKey::new(*b"a").unwrap();
            let registration = register(known.as_ref(), &key);
            if let Some(known) = &known {
                prop_assert_ne!(registration, Registration::New);
                if registration == Registration::NewHolding {
                    prop_assert!(known.key != key || known.live_leases == 0);
                }
                if known.removed && known.live_leases > 0 && known.key == key {
                    prop_assert_eq!(registration, Registration::Draining, "it returns only after its last lease");
                }
            } else {
                prop_assert_eq!(registration, Registration::New);
            }
        }

        #[test]
        fn a_seed_with_leases_is_never_gone(known in known()) {
            let key = SeedKey::new(*b"a").unwrap();
            match (remove(known.as_ref(), &key), known) {
                (Removal::Gone, Some(known)) => prop_assert_eq!((known.live_leases, known.key), (0, key)),
                (Removal::Draining, Some(known)) => prop_assert!(known.live_leases > 0 && known.key == key),
                (Removal::Unknown, known) => prop_assert!(known.is_none_or(|known| known.key != key)),
                (_, None) => prop_assert!(false, "a seed that is not known cannot go"),
            }
        }
    }
}
