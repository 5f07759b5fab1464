//! Whose a seed is: who may say that it lives, ends, or holds something else.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// What makes somebody a seed's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OwnedBy {
    /// Its principal, where that is known.
    #[default]
    Principal,
    /// That, and the address that it asks from: also of workers that share a token, or have none.
    Address,
}

impl FromStr for OwnedBy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "principal" => Ok(Self::Principal),
            "address" => Ok(Self::Address),
            _ => Err("must be principal or address"),
        }
    }
}

/// Who registered a seed, or asks to; as far as that binds. A seed of which a part is not known is of whoever first has
/// that part.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Owner {
    /// The principal, by its name.
    pub principal: Option<Arc<str>>,
    /// The address that the request came from.
    pub address: Option<IpAddr>,
}

impl Owner {
    /// Whether both are known, and not the same.
    pub fn is_other(&self, other: &Self) -> bool {
        fn differ<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            matches!((a, b), (Some(a), Some(b)) if a != b)
        }
        differ(self.principal.as_ref(), other.principal.as_ref())
            || differ(self.address.as_ref(), other.address.as_ref())
    }

    /// This owner; what is not known of it is taken from another.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            principal: self.principal.as_ref().or(other.principal.as_ref()).cloned(),
            address: self.address.or(other.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner() -> impl Strategy<Value = Owner> {
        let principal = prop::option::of(prop_oneof![Just("a"), Just("b")]);
        let address = prop::option::of(0u8..2);
        (principal, address).prop_map(|(principal, address)| Owner {
            principal: principal.map(Into::into),
            address: address.map(|number| [10, 0, 0, number].into()),
        })
    }

    proptest! {
        #[test]
        fn whoever_is_not_another_can_be_the_owner_and_stays_it(has in owner(), asks in owner(), later in owner()) {
            prop_assert_eq!(has.is_other(&asks), asks.is_other(&has));
            prop_assert!(!has.is_other(&has) && !has.is_other(&Owner::default()));
            let owner = has.or(&asks);
            prop_assert!(!owner.is_other(&has));
            prop_assert_eq!(owner.is_other(&asks), has.is_other(&asks));
            // Who was refused before is refused yet: nobody is let in by what is learnt.
            prop_assert!(!has.is_other(&later) || owner.is_other(&later));
        }
    }
}
