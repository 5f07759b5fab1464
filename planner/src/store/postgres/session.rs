//! Whose the database's sessions are.
//!
//! A planner's connection mostly has a session of its own, which keeps what was prepared and set in it. A pooler, such
//! as pgbouncer in transaction mode, has few sessions and lends one for the time of a transaction: what outlives the
//! transaction is lost to us, and met by whoever has the session next. So nothing does there: all that is asked stands
//! in a transaction, which sets for itself what it needs, and its statements have no names. The database then parses
//! each statement anew, a round trip of its own, which is why a session of its own is used as such.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::{BoxFuture, try_join};
use futures_util::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo,
};
use sqlx::{ConnectOptions, Connection as _, Either, Error, Execute, Executor, Postgres, SqlStr};

/// How long it may take to find out whether sessions are shared.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Whose turn it is to ask for its session. Twice the same in a row shows a pooler that gives sessions in turns, two
/// different ones that follow each other show one that gives the last that was used.
const TURNS: [usize; 12] = [0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1];

/// Whether there is a pooler between, which lends its sessions for a transaction at a time: whether one connection
/// was seen to have two sessions, or two connections, that are open at once, to have the same. Neither ever happens
/// without one. With one, it takes a stroke of luck at each of the turns for it not to be seen.
///
/// When that cannot be found out in time, as with a pooler that has one session and keeps it for one client, sessions
/// count as shared, which is right for both.
pub(super) async fn are_shared(options: &PgConnectOptions) -> Result<bool, Error> {
    let look = async {
        let (first, second) = try_join(options.connect(), options.connect()).await?;
        let mut connections = [first, second];
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        for turn in TURNS {
            seen[turn].insert(session(&mut connections[turn]).await?);
        }
        for connection in connections {
            let _ = connection.close().await;
        }
        Ok::<_, Error>(seen.iter().any(|sessions| sessions.len() > 1) || !seen[0].is_disjoint(&seen[1]))
    };
    tokio::time::timeout(LOOK_TIMEOUT, look).await.unwrap_or(Ok(true))
}

/// The server process of the session that a connection has at the moment.
async fn session(connection: &mut PgConnection) -> Result<i32, Error> {
    use sqlx::Row;
    sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// A connection, for the time of a transaction.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) raw: PoolConnection<Postgres>,
    /// Whether somebody else has its session after the transaction.
    pub(super) shared: bool,
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let named = !self.shared;
        self.raw.fetch_many(Asked { query, named })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let named = !self.shared;
        self.raw.fetch_optional(Asked { query, named })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.raw.prepare_with(sql, parameters)
    }
}

/// A query, whose statement has a name in the session only if it may.
struct Asked<Q> {
    query: Q,
    named: bool,
}

impl<'q, Q: Execute<'q, Postgres>> Execute<'q, Postgres> for Asked<Q> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.named && self.query.persistent()
    }
}
