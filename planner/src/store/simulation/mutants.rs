//! Deliberate faults: each is put into the store's statements, and histories are played until one shows it.

use std::time::Instant;

use super::statements::{Edit, Edits};
use super::{Ground, Run, Stages, history, runtime};
use proptest::strategy::ValueTree;

/// Histories that look for a fault, however slow the store is: most are found by far fewer, some by chance late.
const AT_LEAST: u64 = 3_000;

/// A fault.
pub(crate) struct Mutant {
    /// What is wrong.
    pub(crate) name: &'static str,
    /// How the statements are changed; each must occur.
    pub(crate) edits: &'static [Edit],
}

pub(crate) fn are_found<G: Ground>(mutants: &[Mutant]) {
    let run = Run::of::<G>("deliberate faults", G::HISTORIES.max(AT_LEAST));
    runtime().block_on(async {
        let mut stages = Stages::<G>::new();
        let mut survivors = Vec::new();
        let mut most = 0;
        println!("{:<58} {:>9} {:>7}  first difference", "fault", "histories", "seconds");
        for Mutant { name, edits } in mutants {
            let since = Instant::now();
            let edits = Edits::put(edits);
            let mut found = None;
            for at in 0..run.histories {
                let history = history::<G>(run.first.wrapping_add(at)).current();
                if let Err(difference) = stages.play(&history).await {
                    found = Some((at + 1, difference));
                    break;
                }
            }
            let seconds = since.elapsed().as_secs_f32();
            let unused = edits.end();
            if let Some((histories, difference)) = found {
                most = most.max(histories);
                println!("{name:<58} {histories:>9} {seconds:>7.1}  {difference:.240}");
            } else {
                println!("{name:<58} {:>9} {seconds:>7.1}  NOT FOUND; in no statement: {unused:?}", "all");
                survivors.push(*name);
            }
        }
        for at in 0..most {
            let history = history::<G>(run.first.wrapping_add(at)).current();
            stages.play(&history).await.unwrap_or_else(|difference| panic!("without a fault: {difference}"));
        }
        println!("without a fault the same {most} histories show no difference");
        assert_eq!(survivors, [""; 0], "not found in {} histories", run.histories);
    });
}
