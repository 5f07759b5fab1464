//! Deliberate faults: each is put into the store's statements, and histories are played until one shows it. A fault
//! that none shows is a failure: the simulation would not notice it either if somebody made it.

use proptest::strategy::ValueTree;

use super::statements::{Edit, Edits};
use super::{Ground, Run, Stages, history, runtime};

/// Where every search begins: the same histories are played wherever and whenever the test runs.
const FIRST: u64 = 1;

/// How many histories look for a fault. The one that hides best takes a tenth of them.
const BUDGET: u64 = 5_000;

/// Looks for a fault, which `edits` make: each must occur in some statement.
///
/// # Panics
/// When no history shows it; or when the one that did shows a difference without it, too.
pub(crate) fn is_found<G: Ground>(fault: &str, edits: &[Edit]) {
    let run = Run::of::<G>(fault, || FIRST, BUDGET);
    runtime().block_on(async {
        let mut stages = Stages::<G>::new();
        let edits = Edits::put(edits);
        for at in 0..run.histories {
            let history = history::<G>(run.first.wrapping_add(at)).current();
            let Err(difference) = stages.play(&history).await else { continue };
            println!("found after {} histories: {difference}", at + 1);
            edits.end();
            if let Err(difference) = stages.play(&history).await {
                panic!("the same history without the fault: {difference}");
            }
            return;
        }
        panic!("not found in {} histories; in no statement: {:?}", run.histories, edits.end());
    });
}
