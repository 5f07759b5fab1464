//! What a worker that serves while it loads tells the planner of how far it is.

use std::sync::Arc;

use rfork_protocol::v2::{Held, LoadProgress, Name};

use crate::engine::memory::WeightMemory;

/// Reads off how far a load is.
#[derive(Debug, Clone)]
pub(crate) struct Reporting {
    /// What is loaded.
    pub(crate) memory: Arc<WeightMemory>,
    /// Tells this memory's bytes from what was at this address before.
    pub(crate) incarnation: Name,
}

impl Reporting {
    /// How far it is now.
    pub(crate) fn progress(&self) -> LoadProgress {
        LoadProgress {
            incarnation: self.incarnation.clone(),
            arrived_bytes: self.memory.arrivals().bytes(),
            held: held(&self.memory),
        }
    }
}

/// What a memory holds, and of which root; `None` while that is nothing.
pub(crate) fn held(memory: &WeightMemory) -> Option<Held> {
    let bytes = memory.held_bytes();
    let root = origin(memory).or_else(|| Name::cut(&memory.content()?.id.to_string()))?;
    (bytes > 0).then_some(Held { root, bytes })
}

/// What named the bytes when the load began, if they had no content id then. The planner knows them by this name until
/// everything is held: so those who know the content id already, and those who do not yet, are of one root.
pub(crate) fn origin(memory: &WeightMemory) -> Option<Name> {
    Name::cut(&memory.growing()?.origin.to_string())
}
