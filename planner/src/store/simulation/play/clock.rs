//! Time that goes by, and clocks that are set: what time it is follows from the one alone.

use std::sync::Arc;

use super::super::super::{Commands, Store};
use super::super::Ground;
use super::{Play, Stage};

impl<G: Ground> Stage<G> {
    /// What the clock shows.
    pub(super) fn shown_ms(&self) -> i64 {
        self.clocks[0].shown_ms()
    }

    /// What time it is on an empty database. All planners have seen it, whatever there was in the history before.
    pub(super) async fn begin_time(&self) -> Result<i64, String> {
        // Then there is something to be noted, whatever a fault has left.
        self.clocks.iter().for_each(|clock| clock.count(1));
        self.clocks[0].step(1);
        for store in self.stores.iter().chain(&self.stores) {
            look(store).await?;
        }
        let snapshot = self.stores[0].snapshot().await.map_err(|error| error.to_string())?;
        Ok(snapshot.ahead_ms + self.shown_ms())
    }
}

impl<G: Ground> Play<'_, G> {
    /// Milliseconds go by, for all.
    pub(super) fn wait(&mut self, ms: i64) {
        self.stage.clocks.iter().for_each(|clock| clock.count(ms));
        self.pass(ms);
    }

    /// The clock is set, and nobody has seen it.
    pub(super) fn clock_is_set(&mut self, ms: i64) {
        self.tally.clock_set += 1;
        self.set_clock(ms);
        self.clock_is_news = true;
    }

    /// A planner is stopped for a while, and others work meanwhile: where none did, nobody could know.
    pub(super) async fn pause(&mut self, paused: usize, ms: i64) -> Result<(), String> {
        let others = (0..G::PLANNERS).filter(|planner| *planner != paused);
        others.clone().for_each(|planner| self.stage.clocks[planner].count(ms));
        self.pass(ms);
        for planner in others.chain([paused]) {
            look(self.store(planner)).await?;
        }
        Ok(())
    }

    /// The clock is set while no planner is there: where it was set forward, it may as well have gone on.
    pub(super) async fn away(&mut self, ms: i64) -> Result<(), String> {
        look(self.store(0)).await?;
        self.stage.stores.clear();
        self.set_clock(ms);
        self.set_time(ms.max(0));
        self.stage.restart(self.stage.world).await;
        (0..G::PLANNERS).for_each(|planner| self.begin_anew(planner));
        Ok(())
    }

    /// Time goes by.
    fn pass(&mut self, ms: i64) {
        self.set_clock(ms);
        self.set_time(ms);
    }

    fn set_clock(&mut self, ms: i64) {
        self.stage.clocks[0].step(ms);
        self.possible.iter_mut().for_each(|model| model.clock_ms += ms);
    }

    fn set_time(&mut self, ms: i64) {
        self.now += ms;
        self.possible.iter_mut().for_each(|model| model.now += ms);
    }

    /// A planner that starts takes the clock as it finds it: somebody is to have seen before how it was set.
    pub(super) async fn see_clock(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.clock_is_news) { look(self.store(0)).await } else { Ok(()) }
    }
}

/// Has a planner work, though there is nothing to do but to see what time it is.
async fn look(store: &Arc<dyn Store>) -> Result<(), String> {
    store.apply(&Commands::default()).await.map(drop).map_err(|error| error.to_string())
}
