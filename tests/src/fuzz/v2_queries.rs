//! The queries of API v2's lists.

use std::fmt::Debug;

use rfork_protocol::v2::{Cursor, EventQuery, KeyQuery, LeaseQuery, MAX_PAGE, NoQuery, Query, SeedQuery};

use super::{Target, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "v2_queries", run, executions: 20_000, most_bytes: |input| 64 * input + (64 << 10) };

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    let cursor = Cursor::of(data);
    assert!(data.starts_with(&cursor.bytes()));
    let Ok(query) = std::str::from_utf8(data) else { return };
    read::<NoQuery>(query);
    let limits = [
        read::<SeedQuery>(query).map(|query| query.limit),
        read::<LeaseQuery>(query).map(|query| query.limit),
        read::<KeyQuery>(query).map(|query| query.limit),
        read::<EventQuery>(query).map(|query| query.limit),
    ];
    assert!(limits.iter().flatten().all(|limit| (1..=MAX_PAGE).contains(limit)));
}

fn read<T: Query + PartialEq + Debug>(query: &str) -> Option<T> {
    match T::decode(query) {
        Ok(read) => {
            assert_eq!(T::decode(&read.encode()).as_ref(), Ok(&read));
            Some(read)
        }
        Err(error) => {
            is_one_line(&error);
            None
        }
    }
}
