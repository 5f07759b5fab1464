//! The suite on SQLite, and what only this store promises.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rfork_protocol::{SeedIdentity, SeedKey};

use super::*;
use crate::domain::owner::Owner;
use crate::store::commands::{Commands, Register};
use crate::store::conformance::waiting::queue;
use crate::store::conformance::{self, Bench, Home, RULES, acquire, register};
use crate::store::history::Keep;
use crate::store::{ApplyList, Outcome, Store};

/// A file in a directory of its own.
pub(super) struct Directory(tempfile::TempDir);

impl Directory {
    pub(super) fn file(&self) -> PathBuf {
        self.0.path().join("planner.db")
    }
}

#[async_trait]
impl Home for Directory {
    async fn make() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self, rules: Rules, clock: Clock) -> std::sync::Arc<dyn Store> {
        std::sync::Arc::new(SqliteStore::open(&self.file(), rules, clock).await.unwrap())
    }
}

conformance::conformance_suite!(Directory);
conformance::loading::loading_suite!(Directory);

async fn refusal(path: &Path) -> String {
    SqliteStore::open(path, RULES, Clock::System).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_second_planner_on_the_file_is_refused_until_the_first_ends() {
    let home = Directory::make().await;
    let first = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    let text = refusal(&home.file()).await;
    assert!(text.contains("in use by another planner"), "{text}");
    // Nor by another name.
    let link = home.0.path().join("link.db");
    std::os::unix::fs::symlink(home.file(), &link).unwrap();
    assert!(refusal(&link).await.contains("in use by another planner"));
    first.close().await;
    drop(first);
    SqliteStore::open(&link, RULES, Clock::System).await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let home = Directory::make().await;
    let file = home.0.path().join("file");
    std::fs::write(&file, b"a text, not a database, and longer than a header of one would be: ".repeat(9))
        .unwrap();
    let text = refusal(&file).await;
    assert!(text.contains("file cannot be used as the planner's database"), "{text}");
    let text = refusal(&file.join("planner.db")).await;
    assert!(text.starts_with("cannot open ") && text.contains("--database-url"), "{text}");
    let text = refusal(home.0.path()).await;
    assert!(text.contains("is a directory"), "{text}");
}

#[tokio::test]
async fn what_is_made_is_for_its_user_alone() {
    let home = Directory::make().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = home.0.path().join("made/here");
    let file = directory.join("planner.db");
    let store = SqliteStore::open(&file, RULES, Clock::System).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        names.push(path.file_name().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["planner.db", "planner.db-shm", "planner.db-wal", "planner.db.lock"]);
    assert_eq!([mode(&directory), mode(directory.parent().unwrap())], [0o700; 2]);
    // Rights that somebody gave stay.
    store.close().await;
    drop(store);
    std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    SqliteStore::open(&file, RULES, Clock::System).await.unwrap();
    assert_eq!(mode(&file), 0o640);
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    let home = Directory::make().await;
    let options = SqliteConnectOptions::new().filename(home.file()).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("CREATE TABLE theirs (x)").execute(&pool).await.unwrap();
    pool.close().await;
    let text = refusal(&home.file()).await;
    assert!(text.contains("of another program"), "{text}");
}

#[tokio::test]
async fn a_file_of_an_unreleased_planner_is_refused_by_name_and_says_what_to_do() {
    let home = Directory::make().await;
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    sqlx::query("UPDATE _sqlx_migrations SET checksum = x'00'").execute(&store.journal.writer).await.unwrap();
    store.close().await;
    drop(store);
    let before = std::fs::read(home.file()).unwrap();
    for _ in 0..2 {
        let error = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap_err();
        assert!(matches!(error, OpenError::Unreleased { version: 1, .. }), "{error}");
        let (name, text) = (home.file().display().to_string(), error.to_string());
        assert!(text.contains(&name) && text.contains("move the file away"), "{text}");
    }
    assert!(std::fs::read(home.file()).unwrap() == before, "nothing of it was changed");
    assert!(!home.0.path().join("planner.db-wal").exists(), "nothing else has to be moved");
    std::fs::rename(home.file(), home.0.path().join("away.db")).unwrap();
    SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
}

#[tokio::test]
async fn a_file_of_a_newer_planner_is_taken_over() {
    let home = Directory::make().await;
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'of the next version', TRUE, x'', 0);
                 ALTER TABLE seeds ADD COLUMN of_the_next_version TEXT";
    sqlx::raw_sql(newer).execute(&store.journal.writer).await.unwrap();
    store.close().await;
    drop(store);
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    let outcomes = store.apply_list(&[acquire("k", 1)]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Acquired(Ok(_))), "{outcomes:?}");
}

#[tokio::test]
async fn a_locked_file_is_an_outage_that_passes() {
    let home = Directory::make().await;
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    let foreign = SqlitePool::connect_with(SqliteConnectOptions::new().filename(home.file())).await.unwrap();
    let tx = foreign.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = store.apply_list(&[acquire("k", 1)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(store.check().await.is_err());
    assert_eq!(store.snapshot().await.unwrap().seed_count, 1, "readers go on");
    tx.rollback().await.unwrap();
    store.check().await.unwrap();
    let outcomes = store.apply_list(&[acquire("k", 1)]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Acquired(Ok(_))), "{outcomes:?}");
}

#[tokio::test]
async fn a_check_writes_as_any_change_does() {
    let home = Directory::make().await;
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    let foreign = SqlitePool::connect_with(SqliteConnectOptions::new().filename(home.file())).await.unwrap();
    let written =
        async || sqlx::query_scalar::<_, i64>("PRAGMA user_version").fetch_one(&foreign).await.unwrap();
    assert_eq!(written().await, 0);
    store.check().await.unwrap();
    assert_eq!(written().await, 1);
    // Whether it has to write or not, it needs the lock.
    let tx = foreign.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert!(store.check().await.is_err());
    tx.rollback().await.unwrap();
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_sqlite_rolled_back_is_an_outage_that_passes() {
    let home = Directory::make().await;
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    // What a full disk makes it do at the commit, behind the driver's back.
    let (mut tx, _) = store.begin().await.unwrap();
    sqlx::query("ROLLBACK").execute(&mut *tx).await.unwrap();
    assert!(store.journal.commit(tx).await.is_err());
    store.check().await.unwrap();
    // And if the call is given up before it learns of it.
    let (mut tx, _) = store.begin().await.unwrap();
    sqlx::query("ROLLBACK").execute(&mut *tx).await.unwrap();
    drop(tx);
    let outcomes = store.apply_list(&[acquire("k", 1)]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Acquired(Ok(_))), "{outcomes:?}");
}

#[tokio::test]
async fn the_database_s_clock_is_the_time_of_day() {
    let home = Directory::make().await;
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let heard = store.snapshot().await.unwrap().seeds[0].last_heartbeat_ms;
    assert!(since.as_millis().abs_diff(u128::from(heard.unsigned_abs())) < 60_000);
}

#[tokio::test]
async fn what_is_written_reaches_its_place_while_the_writer_goes_on() {
    let home = Directory::make().await;
    let store = SqliteStore::open(&home.file(), RULES, Clock::System).await.unwrap();
    let place = home.0.path().join("copy.db");
    let mut number = 0;
    // Of the file alone, without its log, and far from when the writer itself would write it there.
    let is_there = async || {
        std::fs::copy(home.file(), &place).unwrap();
        let copy = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&place)).await.unwrap();
        let seeds = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM seeds").fetch_one(&copy).await;
        copy.close().await;
        // A file that is read while it is written may be none.
        seeds.is_ok_and(|seeds| seeds > 0)
    };
    let reached = async {
        while !is_there().await {
            number = (number + 1) % 100;
            store.apply_list(&[register(number, "k")]).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(300), reached).await.expect("a checkpoint beside the writer");
}

#[tokio::test]
async fn who_waits_in_a_process_that_is_gone_is_given_nothing_more() {
    let mut bench = Bench::<Directory>::new(RULES).await;
    bench.register(1, "k").await;
    bench.apply(&[queue("k", 1, 50_000)]).await;
    assert_eq!(bench.snapshot().await.lease_count, 1, "answered at once");
    // One that is served, and may have heard of it, and one that waits on.
    bench.apply(&[queue("l", 2, 50_000), queue("k", 3, 50_000)]).await;
    bench.register(2, "l").await;
    assert_eq!(bench.snapshot().await.lease_count, 2);
    bench.restart(RULES).await;
    assert!(bench.renew(2, 2).await, "what was granted is nobody else's");
    assert_eq!(bench.snapshot().await.lease_count, 2);
    bench.apply(&[queue("k", 4, 50_000)]).await;
    assert!(bench.release(1, 1).await);
    let woken = bench.store.collect(&[]).await.unwrap();
    assert_eq!(woken.iter().map(|woken| woken.lease).collect::<Vec<_>>(), [conformance::lease(4)]);
}

#[tokio::test]
async fn no_number_of_a_seed_is_used_twice_whoever_has_the_file() {
    let mut bench = Bench::<Directory>::new(RULES).await;
    let (_, first) = bench.register(1, "k").await;
    bench.apply(&[conformance::remove(1, "k")]).await;
    bench.restart(RULES).await;
    let (_, second) = bench.register(1, "k").await;
    // One that comes and goes in one batch has one, too.
    bench.apply(&[register(2, "k"), conformance::remove(2, "k")]).await;
    bench.restart(RULES).await;
    let (_, third) = bench.register(2, "k").await;
    assert!(first < second && second + 1 < third, "{first}, {second}, {third}");
}

/// Each row of it has its own, and no index: those of the mirror are in memory.
#[tokio::test]
async fn a_long_key_costs_its_bytes_once() {
    const SEEDS: u8 = 200;
    let home = Directory::make().await;
    let rules = Rules { history: Keep { ms: 0, ..RULES.history }, ..RULES };
    let store = SqliteStore::open(&home.file(), rules, Clock::System).await.unwrap();
    let size = async || {
        let pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        sqlx::query_scalar::<_, i64>(pages).fetch_one(&store.journal.readers).await.unwrap()
    };
    let before = size().await;
    let register = |rank: u8| Register {
        by: None,
        identity: SeedIdentity::new("h", 1, rank.into()).unwrap(),
        key: SeedKey::new(vec![rank; 8_192]).unwrap(),
        profile: Box::default(),
        age_ms: 0,
        client: None,
        owner: Owner::default(),
    };
    let registers = (0..SEEDS).map(register).collect();
    store.apply(&Commands { registers, ..Commands::default() }).await.unwrap();
    let each = (size().await - before) / i64::from(SEEDS);
    println!("{each} bytes a seed with a key of 8,192");
    assert!((8_192..2 * 8_192).contains(&each), "{each} bytes a seed");
    let indexed = "SELECT DISTINCT i.name FROM sqlite_master m, pragma_index_list(m.name) l, pragma_index_info(l.name) i
                   WHERE m.type = 'table' AND m.name <> 'moves'";
    let indexed: Vec<String> = sqlx::query_scalar(indexed).fetch_all(&store.journal.readers).await.unwrap();
    assert!(indexed.contains(&"host".to_owned()) && !indexed.contains(&"seed_key".to_owned()), "{indexed:?}");
}
