//! What registering and removing a seed means, given what is known of it.

use rfork_protocol::SeedKey;
use rfork_protocol::v1::Labels;

use super::location::Location;
use super::owner::Owner;

/// What a seed tells of itself beside what it holds. None of it is needed; v1 clients tell labels at most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// For people, and for rules by model.
    pub labels: Labels,
    /// Where it stands.
    pub location: Location,
    /// The inference instance that it is a rank of.
    pub instance_id: Option<String>,
    /// Its process: another one has other memory, even at the same address.
    pub incarnation: Option<String>,
    /// The digest of its weights.
    pub content_id: Option<String>,
    /// What named them while they had none, if they were read from storage as it was loaded.
    pub origin: Option<String>,
}

impl Profile {
    /// This profile, with what is not told in it taken from an earlier one.
    #[must_use]
    pub fn or(self, earlier: &Self) -> Self {
        let labels = Labels {
            model_url: self.labels.model_url.or_else(|| earlier.labels.model_url.clone()),
            deploy_strategy: self.labels.deploy_strategy.or_else(|| earlier.labels.deploy_strategy.clone()),
            is_draft: self.labels.is_draft.or(earlier.labels.is_draft),
        };
        Self {
            labels,
            location: self.location.or(&earlier.location),
            instance_id: self.instance_id.or_else(|| earlier.instance_id.clone()),
            incarnation: self.incarnation.or_else(|| earlier.incarnation.clone()),
            content_id: self.content_id.or_else(|| earlier.content_id.clone()),
            origin: self.origin.or_else(|| earlier.origin.clone()),
        }
    }

    /// In which way both tell of memory, and of different memory; `None` if they do not.
    fn contradiction(&self, other: &Self) -> Option<&'static str> {
        let differ = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        if differ(&self.incarnation, &other.incarnation) {
            Some("another process")
        } else {
            differ(&self.content_id, &other.content_id).then_some("other content")
        }
    }

    fn contradicts(&self, other: &Self) -> bool {
        self.contradiction(other).is_some()
    }
}

/// What the store knows of a seed when somebody speaks of it.
// Facts that do not depend on each other.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What it holds.
    pub key: SeedKey,
    /// What it told of itself.
    pub profile: Profile,
    /// Whose it is.
    pub owner: Owner,
    /// Whether its owner has removed it while it still had leases.
    pub removed: bool,
    /// Whether an operator has taken it out: it returns only with other memory.
    pub drained: bool,
    /// Whether it was not heard of for its time to live.
    pub silent: bool,
    /// Whether it still loads.
    pub loads: bool,
    /// Leases on it that live.
    pub live_leases: u32,
}

impl Known {
    /// Whether it is gone for everybody who looks, although a row of it may be left until the sweep: it has no lease,
    /// and was removed or fell silent. A seed that an operator took out is remembered while it is silent, and shown.
    pub fn is_gone(&self) -> bool {
        let Self { removed, drained, silent, live_leases, .. } = *self;
        Standing { removed, drained, silent, suspect: false, leased: live_leases > 0 }.is_gone()
    }

    /// Whether it lives, so that its address is its owner's. Addresses are used again: of one that fell silent, or was
    /// removed and has no lease, nobody keeps it.
    fn lives(&self) -> bool {
        !self.silent && (!self.removed || self.live_leases > 0)
    }

    /// Whether somebody asks who is not its owner.
    ///
    /// # Errors
    /// [`Owned`], while it lives.
    fn is_anothers(&self, owner: &Owner) -> Result<bool, Owned> {
        match self.owner.is_other(owner) {
            true if self.lives() => Err(Owned),
            is_other => Ok(is_other),
        }
    }
}

/// What a seed is to the planner at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is offered.
    Live,
    /// It failed lately, and is not offered for a while.
    Suspect,
    /// It was removed or drained, and is not offered.
    Draining,
    /// It was not heard of for its time to live, and is not offered until it is.
    Silent,
}

/// What of a seed its state follows from, at a moment.
// Five facts that do not depend on each other.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether its owner took it out.
    pub removed: bool,
    /// Whether an operator took it out.
    pub drained: bool,
    /// Whether it was not heard of for its time to live.
    pub silent: bool,
    /// Whether it failed lately.
    pub suspect: bool,
    /// Whether a lease on it lives.
    pub leased: bool,
}

impl Standing {
    /// What it is to the planner.
    pub fn state(self) -> State {
        if self.removed || self.drained {
            State::Draining
        } else if self.silent {
            State::Silent
        } else if self.suspect {
            State::Suspect
        } else {
            State::Live
        }
    }

    /// Whether it is gone for everybody who looks: [`Known::is_gone`].
    pub fn is_gone(self) -> bool {
        !self.leased && (self.removed || (self.silent && !self.drained))
    }
}

/// At this address lives a seed of somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned;

/// What a registration or heartbeat does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// A seed that was not known: its whole capacity is free.
    New,
    /// It is still there, its leases kept; if it had fallen silent, it is offered again.
    Repeated,
    /// It was loading, and has everything now; its leases are kept.
    Completed,
    /// Its memory now holds something else: leases on what it held end, its whole capacity is free.
    NewHolding,
    /// It was removed and is not offered until its last lease has ended; registering it then makes it new. Or it
    /// was drained, and is not offered while its memory is the same.
    Draining,
}

/// Decides what it means that `owner` registers `key`, for a seed that the store knows as `known`.
///
/// # Errors
/// [`Owned`].
pub fn register(
    known: Option<&Known>,
    key: &SeedKey,
    profile: &Profile,
    owner: &Owner,
) -> Result<Registration, Owned> {
    Ok(match known {
        None => Registration::New,
        // Another worker has the address now, and other memory.
        Some(known) if known.is_anothers(owner)? => Registration::NewHolding,
        Some(known) if known.key != *key || known.profile.contradicts(profile) => Registration::NewHolding,
        // Whoever does not say that it is the same memory has other memory.
        Some(known) if known.loads && known.profile.incarnation != profile.incarnation => {
            Registration::NewHolding
        }
        Some(known) if known.drained => Registration::Draining,
        Some(known) if known.removed && known.live_leases > 0 => Registration::Draining,
        Some(known) if known.removed => Registration::NewHolding,
        Some(known) if known.loads => Registration::Completed,
        Some(_) => Registration::Repeated,
    })
}

/// What it does that somebody registers as a loading seed, given what is known of its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// It was not known.
    New,
    /// It is known, with the same memory.
    Repeated,
    /// Its memory is another one: leases on what it was end.
    NewHolding,
    /// It cannot be: a seed of somebody else lives there, an operator or its owner took this memory out, or it has loaded
    /// everything.
    Refused,
}

/// Decides what it means that a worker of `owner` which loads `key` registers, for a seed that the store knows as `known`.
pub fn join(known: Option<&Known>, key: &SeedKey, profile: &Profile, owner: &Owner) -> Joining {
    match register(known, key, profile, owner) {
        Ok(Registration::New) => Joining::New,
        Ok(Registration::NewHolding) => Joining::NewHolding,
        Ok(Registration::Completed) => Joining::Repeated,
        // Of a complete seed that does not tell its incarnation nobody knows whether this is the same.
        Ok(Registration::Repeated) if known.is_some_and(|known| known.profile.incarnation.is_none()) => {
            Joining::NewHolding
        }
        Ok(Registration::Repeated | Registration::Draining) | Err(Owned) => Joining::Refused,
    }
}

/// What is new of a [`Registration::NewHolding`], for people.
pub fn novelty(known: &Known, key: &SeedKey, profile: &Profile, owner: &Owner) -> &'static str {
    if known.owner.is_other(owner) {
        return "another owner";
    }
    if known.key != *key {
        return "another key";
    }
    let other = known.profile.contradiction(profile);
    other.unwrap_or(if known.removed { "it had been removed" } else { "another process" })
}

/// What a heartbeat meets that is no registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The seed that it is of.
    Known,
    /// None, or one with other memory: it must register.
    Unknown,
    /// One that is offered no more.
    Draining,
    /// One of somebody else, which lives.
    Owned,
}

/// Decides what a heartbeat of the holding `key` by `owner` means for a seed that the store knows as `known`. It changes
/// nothing but the time: what it cannot tell of a seed that is not known, only a registration can.
pub fn hear(known: Option<&Known>, key: &SeedKey, incarnation: Option<&str>, owner: &Owner) -> Heard {
    let profile = Profile { incarnation: incarnation.map(str::to_owned), ..Profile::default() };
    match register(known, key, &profile, owner) {
        Ok(Registration::New | Registration::NewHolding) => Heard::Unknown,
        Ok(Registration::Repeated | Registration::Completed) => Heard::Known,
        Ok(Registration::Draining) => Heard::Draining,
        Err(Owned) => Heard::Owned,
    }
}

/// What a removal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing: not known, or known under another key, or what is left of a seed of somebody else.
    Unknown,
    /// Nothing: it is somebody else's, and lives.
    Owned,
    /// It was gone already for everybody who looks; what was left of it goes now, so that no heartbeat which is
    /// on its way brings it back.
    GoneBefore,
    /// It is offered no more and goes when its last lease ends.
    Draining,
    /// It is gone.
    Gone,
}

/// Decides what it means that `owner` removes the holding `key`, for a seed that the store knows as `known`.
pub fn remove(known: Option<&Known>, key: &SeedKey, owner: &Owner) -> Removal {
    let is_anothers = known.map(|known| known.is_anothers(owner));
    match known {
        Some(known) if known.key != *key => Removal::Unknown,
        _ if is_anothers == Some(Err(Owned)) => Removal::Owned,
        _ if is_anothers == Some(Ok(true)) => Removal::Unknown,
        Some(known) if known.is_gone() => Removal::GoneBefore,
        Some(known) if known.live_leases > 0 => Removal::Draining,
        Some(_) => Removal::Gone,
        None => Removal::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = Option<String>> {
        prop::option::of(prop_oneof![Just("x".to_owned()), Just("y".to_owned())])
    }

    fn profile() -> impl Strategy<Value = Profile> {
        let parts = (name(), name(), name(), name());
        parts.prop_map(|(zone, instance_id, incarnation, content_id)| Profile {
            location: Location { zone, ..Location::default() },
            instance_id,
            incarnation,
            content_id,
            ..Profile::default()
        })
    }

    fn owner() -> impl Strategy<Value = Owner> {
        name().prop_map(|name| Owner { principal: name.map(Into::into), address: None })
    }

    fn known() -> impl Strategy<Value = Option<Known>> {
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let parts = (0u8..3, profile(), owner(), flags, 0u32..3);
        prop::option::of(parts.prop_map(|(key, profile, owner, flags, live_leases)| {
            let (removed, drained, silent, loads) = flags;
            Known {
                key: SeedKey::new([b'a' + key]).unwrap(),
                profile,
                owner,
                removed,
                drained,
                silent,
                loads,
                live_leases,
            }
        }))
    }

    proptest! {
        #[test]
        fn leases_end_early_only_when_the_memory_holds_something_else(
            known in known(), told in profile(), owner in owner(),
        ) {
            let key = SeedKey::new(*b"a").unwrap();
            let Ok(registration) = register(known.as_ref(), &key, &told, &owner) else { return Ok(()) };
            if let Some(known) = &known {
                let other_memory = known.key != key
                    || known.owner.is_other(&owner)
                    || known.profile.contradicts(&told)
                    || (known.loads && known.profile.incarnation != told.incarnation);
                prop_assert_ne!(registration, Registration::New);
                if registration == Registration::NewHolding {
                    prop_assert!(other_memory || known.live_leases == 0);
                }
                if other_memory {
                    prop_assert_eq!(registration, Registration::NewHolding, "readers must not meet other bytes");
                } else if known.removed && known.live_leases > 0 {
                    prop_assert_eq!(registration, Registration::Draining, "it returns only after its last lease");
                } else if known.drained {
                    prop_assert_eq!(registration, Registration::Draining, "its memory is the same");
                } else if !known.removed {
                    prop_assert_eq!(registration == Registration::Completed, known.loads);
                }
            } else {
                prop_assert_eq!(registration, Registration::New);
            }
        }

        #[test]
        fn a_seed_that_lives_is_its_owners_alone_and_one_that_is_gone_is_anybodys(
            known in known(), told in profile(), owner in owner(),
        ) {
            let Some(known) = known.filter(|known| known.owner.is_other(&owner)) else { return Ok(()) };
            let (key, known) = (known.key.clone(), Some(known));
            let of = |known: &Option<Known>| (
                register(known.as_ref(), &key, &told, &owner),
                join(known.as_ref(), &key, &told, &owner),
                hear(known.as_ref(), &key, told.incarnation.as_deref(), &owner),
                remove(known.as_ref(), &key, &owner),
            );
            let has_gone = known.as_ref().is_some_and(|known| {
                known.silent || (known.removed && known.live_leases == 0)
            });
            let wanted = if has_gone {
                (Ok(Registration::NewHolding), Joining::NewHolding, Heard::Unknown, Removal::Unknown)
            } else {
                (Err(Owned), Joining::Refused, Heard::Owned, Removal::Owned)
            };
            prop_assert_eq!(of(&known), wanted);
        }

        #[test]
        fn a_heartbeat_registers_nothing(known in known(), incarnation in name()) {
            let key = SeedKey::new(*b"a").unwrap();
            match (hear(known.as_ref(), &key, incarnation.as_deref(), &Owner::default()), known) {
                (_, None) => {}
                (Heard::Unknown, Some(known)) => {
                    let differs = known.profile.incarnation != incarnation;
                    let is_told = known.profile.incarnation.is_some() && incarnation.is_some();
                    let other = known.key != key || (differs && (is_told || known.loads));
                    prop_assert!(other || (known.removed && known.live_leases == 0));
                }
                (Heard::Draining, Some(known)) => prop_assert!(known.drained || known.removed),
                (Heard::Owned, Some(_)) => prop_assert!(false, "who is not known is nobody else"),
                (Heard::Known, Some(known)) => {
                    prop_assert!(known.key == key && !known.drained && !known.removed);
                }
            }
            prop_assert_eq!(hear(None, &key, None, &Owner::default()), Heard::Unknown);
        }

        #[test]
        fn what_is_not_told_again_stays_known(earlier in profile(), told in profile()) {
            let now = told.clone().or(&earlier);
            prop_assert_eq!(&now, &now.clone().or(&earlier));
            prop_assert_eq!(&now.instance_id, if told.instance_id.is_some() { &told.instance_id } else { &earlier.instance_id });
            prop_assert!(!now.contradicts(&told));
        }

        #[test]
        fn a_seed_with_leases_is_never_gone(known in known()) {
            let key = SeedKey::new(*b"a").unwrap();
            match (remove(known.as_ref(), &key, &Owner::default()), known) {
                (Removal::Gone, Some(known)) => {
                    prop_assert!(!known.is_gone());
                    prop_assert_eq!((known.live_leases, known.key), (0, key));
                }
                (Removal::GoneBefore, Some(known)) => {
                    prop_assert!(known.removed || known.silent);
                    prop_assert_eq!((known.live_leases, known.key), (0, key));
                }
                (Removal::Draining, Some(known)) => prop_assert!(known.live_leases > 0 && known.key == key),
                (Removal::Unknown, known) => prop_assert!(known.is_none_or(|known| known.key != key)),
                (Removal::Owned, Some(_)) => prop_assert!(false, "who is not known is nobody else"),
                (_, None) => prop_assert!(false, "a seed that is not known cannot go"),
            }
        }
    }
}
