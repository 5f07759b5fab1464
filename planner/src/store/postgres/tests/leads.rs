//! The right to lead, of which two planners are asked at once.

use super::*;
use crate::store::commands::{Claim, Role};
use crate::store::simulation::sqlx;

fn claim(seed: u8, round: u8) -> Command {
    let profile = Profile { incarnation: Some("first".into()), ..Profile::default() };
    Command::Claim(Box::new(Claim {
        by: None,
        owner: Owner::default(),
        identity: identity(seed),
        key: key(&format!("k{round}")),
        profile: Box::new(profile),
        client: None,
        total_bytes: 9,
        arrived_bytes: 0,
        held: None,
        origin: None,
        whole: false,
        patience_ms: 60_000,
    }))
}

fn leads(outcomes: &[Outcome]) -> usize {
    let leads = |one: &&Outcome| matches!(one, Outcome::Claimed(claimed) if claimed.role == Role::Leads);
    outcomes.iter().filter(leads).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_ask_two_planners_at_once_one_leads() {
    let Database(url) = Database::make().await;
    let first = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    let second = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    let both = async |one: [Command; 2], other: [Command; 2]| {
        let (one, other) = tokio::join!(first.apply_list(&one), second.apply_list(&other));
        leads(&one.unwrap()) + leads(&other.unwrap())
    };
    for round in 0..20 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|seed| claim(4 * round + seed, round));
        assert_eq!(both([a.clone(), b.clone()], [c.clone(), d.clone()]).await, 1, "nobody had it");
        // Its holder is not heard of any more.
        sqlx::query("UPDATE loading_seeds SET lead_until_ms = 0")
            .execute(first.database.pool.connections())
            .await
            .unwrap();
        assert_eq!(both([b, a], [d, c]).await, 1, "somebody had it");
    }
}
