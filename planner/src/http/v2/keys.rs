//! What concerns all seeds of a key.

use std::time::Duration;

use rfork_protocol::v2::{Invalidate, Invalidated};

use super::refused::Refused;
use super::route::{Call, within};

/// How long taking out the seeds of a key may take; asked again, it goes on.
const DEADLINE: Duration = Duration::from_secs(8);

pub(super) async fn invalidate(call: Call<Invalidate>) -> Result<Invalidated, Refused> {
    let Call { api, permit, request: Invalidate { seed_key: key, keep_content_id }, .. } = call;
    let keep = keep_content_id.map(String::from);
    let drained = within(DEADLINE, api.store.invalidate(&key, keep.as_deref(), permit.by().as_ref())).await?;
    tracing::info!(%key, drained, "a key was invalidated");
    Ok(Invalidated { drained })
}
