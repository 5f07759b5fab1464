//! What only a seed's owner may have done. Whoever else asks is refused; while principals are only counted for that, it is
//! done as if nobody knew whose it is.

use super::Api;
use super::permit::Permit;
use crate::domain::owner::Owner;
use crate::domain::seed::{Heard, Registration, Removal};
use crate::identity::Denied;
use crate::store::commands::{Heartbeat, NoRoom, Register, Remove, Unregistered};
use crate::writer::{Beats, Met, WriteError};

/// Why it was not done.
#[derive(Debug)]
pub(super) enum Undone {
    /// It could not be written.
    Write(WriteError),
    /// There is no room for it.
    NoRoom(NoRoom),
    /// It is somebody else's.
    Denied(Denied),
}

/// Registers a seed, or hears that it is still there.
pub(super) async fn register(api: &Api, permit: &Permit, command: Register) -> Result<Registration, Undone> {
    let again = counted(permit, &command.owner).map(|owner| Register { owner, ..command.clone() });
    let registered = match api.submit(command).await? {
        Err(Unregistered::Owned) => api.submit(permit.of_another(again)?).await?,
        registered => registered,
    };
    match registered {
        Ok((registration, _)) => Ok(registration),
        Err(Unregistered::NoRoom(no_room)) => Err(Undone::NoRoom(no_room)),
        Err(Unregistered::Owned) => permit.of_another(None).map_err(Undone::Denied),
        Err(Unregistered::NotPinned) => Err(permit.not_pinned().into()),
    }
}

/// Takes a seed out.
pub(super) async fn remove(api: &Api, permit: &Permit, command: Remove) -> Result<Removal, Undone> {
    let again = counted(permit, &command.owner).map(|owner| Remove { owner, ..command.clone() });
    let removal = match api.submit(command).await? {
        Removal::Owned => api.submit(permit.of_another(again)?).await?,
        removal => removal,
    };
    if removal == Removal::Owned { permit.of_another(None).map_err(Undone::Denied) } else { Ok(removal) }
}

/// Writes heartbeats of one owner; gives what they met, in their order. Those that met [`Heard::Owned`] are refused.
pub(super) async fn hear(
    api: &Api,
    permit: &Permit,
    owner: &Owner,
    beats: Beats,
) -> Result<Vec<Met>, WriteError> {
    let again = counted(permit, owner).map(|owner| (owner, beats.heartbeats.clone(), beats.body.clone()));
    let mut met = api.writer.beat(beats).await?;
    let others: Vec<usize> = (0..met.len()).filter(|at| met[*at].0 == Heard::Owned).collect();
    if others.is_empty() {
        return Ok(met);
    }
    let Ok((owner, heartbeats, body)) = permit.of_another(again) else { return Ok(met) };
    let those = others.iter().map(|at| Heartbeat { owner: owner.clone(), ..heartbeats[*at].clone() });
    let those = api.writer.beat(Beats { heartbeats: those.collect(), body }).await?;
    for (at, one) in others.into_iter().zip(those) {
        met[at] = one;
    }
    Ok(met)
}

/// What of an owner is enforced, if another part of it is only counted.
fn counted(permit: &Permit, owner: &Owner) -> Option<Owner> {
    let enforced = permit.enforced_owner();
    (enforced != *owner).then_some(enforced)
}

impl From<WriteError> for Undone {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl From<Denied> for Undone {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}
