//! Where the stores' statements pass in tests: they are counted, and a deliberate fault may be put into their
//! text. [`sqlx`] stands in for the library in the stores' modules, so that the stores are written as if nothing
//! were there, and a release build has nothing there.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use ::sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// A replacement in the text of statements; any run of blanks counts as one.
pub(crate) type Edit = (&'static str, &'static str);

thread_local! {
    /// Statements that were made on this thread.
    static MADE: Cell<u64> = const { Cell::new(0) };
    /// Commits that were begun on this thread.
    static COMMITS: Cell<u64> = const { Cell::new(0) };
    static EDITS: RefCell<Vec<(Edit, bool)>> = const { RefCell::new(Vec::new()) };
}

/// How many statements were made on this thread so far.
pub(crate) fn made() -> u64 {
    MADE.get()
}

/// A store without statements has come as far as another with one.
pub(crate) fn statement() {
    MADE.set(MADE.get() + 1);
}

/// How many commits were begun on this thread so far.
pub(crate) fn commits() -> u64 {
    COMMITS.get()
}

/// A commit begins: drivers send it by calls of their own, so the stores tell it.
pub(crate) fn commit() {
    COMMITS.set(COMMITS.get() + 1);
}

/// Edits of all statements of this thread, until it is dropped.
pub(crate) struct Edits(());

impl Edits {
    pub(crate) fn put(edits: &[Edit]) -> Self {
        EDITS.set(edits.iter().map(|edit| (*edit, false)).collect());
        Self(())
    }

    /// Ends them, and gives those whose text was in no statement.
    pub(crate) fn end(self) -> Vec<&'static str> {
        let edits = EDITS.take();
        drop(self);
        edits.into_iter().filter_map(|((from, _), used)| (!used).then_some(from)).collect()
    }
}

impl Drop for Edits {
    fn drop(&mut self) {
        EDITS.take();
    }
}

/// What becomes of a statement's text.
fn pass(text: impl SqlSafeStr) -> SqlStr {
    MADE.set(MADE.get() + 1);
    let text = text.into_sql_str();
    EDITS.with_borrow_mut(|edits| {
        if edits.is_empty() {
            return text;
        }
        let mut edited = Cow::Borrowed(text.as_str());
        for ((from, to), used) in edits {
            let (normal, from) = (normal(&edited), normal(from));
            if normal.contains(&from) {
                *used = true;
                edited = Cow::Owned(normal.replace(&from, to));
            }
        }
        match edited {
            Cow::Borrowed(_) => text,
            Cow::Owned(edited) => AssertSqlSafe(edited).into_sql_str(),
        }
    })
}

fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The library, with statements that pass here.
pub(crate) mod sqlx {
    pub(crate) use ::sqlx::*;

    use ::sqlx::query::{Query, QueryAs, QueryScalar};

    pub(crate) fn query<'a, DB: Database>(text: impl SqlSafeStr) -> Query<'a, DB, DB::Arguments> {
        ::sqlx::query(super::pass(text))
    }

    pub(crate) fn query_as<'a, DB, O>(text: impl SqlSafeStr) -> QueryAs<'a, DB, O, DB::Arguments>
    where
        DB: Database,
        O: for<'r> FromRow<'r, DB::Row>,
    {
        ::sqlx::query_as(super::pass(text))
    }

    pub(crate) fn query_scalar<'a, DB, O>(text: impl SqlSafeStr) -> QueryScalar<'a, DB, O, DB::Arguments>
    where
        DB: Database,
        (O,): for<'r> FromRow<'r, DB::Row>,
    {
        ::sqlx::query_scalar(super::pass(text))
    }
}
