//! Seeds that lie of what they hold to those who read by address. Their bytes are an honest worker's, so that nothing but the
//! lie is found out: a worker that is granted such a one is loaded all the same, with the right bytes, within its memory.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use rfork_protocol::frame::SignOfLife;
use rfork_protocol::manifest::content::{ContentId, Growing, Root};
use rfork_protocol::manifest::digest::Digest;
use rfork_protocol::manifest::metadata::{EntryFields, Epoch, Extension, HELD_PATH, HeldChunks, Metadata};
use rfork_tests::by_address::{KEY, start};
use rfork_tests::http::request;
use rfork_tests::model::Model;
use rfork_tests::process::{Planner, Worker};
use rfork_tests::proxy::info_path;
use serde_json::json;

use crate::liars::{Truth, answers, goes_on, listens, truth};
use crate::loading_liars::{Liar, ORIGIN};

/// What a liar knows: the digests of the model, and which content that is.
#[derive(Debug, Clone)]
struct Known {
    digests: Vec<Digest>,
    id: ContentId,
}

impl Known {
    /// Every chunk.
    fn all(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.digests.len()).unwrap()
    }

    /// The same with the digests that those chunks have.
    fn digested(&self, told: HeldChunks) -> HeldChunks {
        let digests = told.chunks.iter().map(|chunk| self.digests[*chunk as usize]).collect();
        HeldChunks { digests, ..told }
    }
}

/// That these chunks are held.
fn held(chunks: impl IntoIterator<Item = u32>) -> HeldChunks {
    let sign = SignOfLife { has_source: true, silent_ms: 0 };
    let chunks = chunks.into_iter().collect();
    HeldChunks { epoch: Epoch(1), chunks, digests: Vec::new(), content: None, is_whole: false, sign }
}

/// A lie.
struct Lie {
    name: &'static str,
    /// Whether the bytes are said to have no content id yet.
    grows: bool,
    /// What is answered to a question.
    answers: fn(&mut TcpStream, &Known),
}

fn tells(stream: &mut TcpStream, told: &HeldChunks) {
    answers(stream, told.encode().as_bytes());
}

static LIES: [Lie; 11] = [
    Lie {
        name: "names another epoch each time",
        grows: false,
        answers: |stream, known| {
            tells(stream, &HeldChunks { epoch: Epoch(fastrand::u128(..)), ..held(known.all()) });
        },
    },
    Lie {
        name: "tells of billions of chunks",
        grows: false,
        answers: |stream, _| {
            let told = held([]).encode().replace("\"ranges\":[]", "\"ranges\":[[0,4294967295]]");
            answers(stream, told.as_bytes());
        },
    },
    Lie {
        name: "tells of chunks that there are not",
        grows: false,
        answers: |stream, known| tells(stream, &held([known.all().end])),
    },
    Lie { name: "tells the same without end", grows: false, answers: |stream, _| tells(stream, &held([0])) },
    Lie {
        name: "holds everything, and tells of nothing",
        grows: false,
        answers: |stream, _| tells(stream, &HeldChunks { is_whole: true, ..held([]) }),
    },
    Lie {
        name: "an endless answer",
        grows: false,
        answers: |stream, _| {
            answers(stream, b"{");
            goes_on(stream, &[b' '; 1 << 16], std::time::Duration::ZERO);
        },
    },
    Lie { name: "no answer", grows: false, answers: |stream, _| drop(stream.read(&mut [0])) },
    Lie { name: "tells no digests", grows: true, answers: |stream, known| tells(stream, &held(known.all())) },
    Lie {
        name: "tells other digests than its bytes have, and their content",
        grows: true,
        answers: |stream, known| {
            let digests = vec![Digest::crc64_nvme(7); known.digests.len()];
            tells(stream, &HeldChunks { digests, content: Some(known.id), ..held(known.all()) });
        },
    },
    Lie {
        name: "names a content that its digests do not make",
        grows: true,
        answers: |stream, known| {
            let content = Some(ContentId { hash: [5; 32], ..known.id });
            tells(stream, &HeldChunks { content, ..known.digested(held(known.all())) });
        },
    },
    Lie {
        name: "names a content before it has told of everything",
        grows: true,
        answers: |stream, known| {
            tells(stream, &HeldChunks { content: Some(known.id), ..known.digested(held([0])) });
        },
    },
];

/// An honest worker, whose bytes are read.
fn honest(model: &Model) -> (Worker, Planner, Metadata) {
    let planner = Planner::start(&["--host=127.0.0.1", "--no-liveness-probe"]);
    let worker = start(&[], "honest", model, &planner.url(), &[]);
    let info = request(&worker.serving().address, "GET", &info_path(KEY), &[]).unwrap();
    (worker, planner, Metadata::decode(&info.body).unwrap())
}

fn is_loaded_beside(told: &Truth, lie: &'static Lie) {
    let extension = told.metadata.extension.clone().unwrap();
    let content = extension.root.content().unwrap().clone();
    let known = Known { digests: content.chunks.digests.to_vec(), id: content.id };
    let growing = Growing {
        origin: ORIGIN,
        algorithm: content.chunks.algorithm,
        chunk_bytes: content.chunks.chunk_bytes,
    };
    let root = if lie.grows { Root::Growing(growing) } else { extension.root.clone() };
    let metadata = Metadata { extension: Some(Extension { root, ..extension }), ..told.metadata.clone() };
    let metadata = metadata.encode(EntryFields::Five);
    let service = listens(move |stream| {
        let mut asked = [0; 4096];
        let len = stream.read(&mut asked).unwrap_or(0);
        if String::from_utf8_lossy(&asked[..len]).contains(HELD_PATH) {
            (lie.answers)(stream, &known);
        } else {
            truth(stream, &metadata);
        }
        let _ = stream.flush();
    });
    let planner = Planner::start(&["--host=127.0.0.1", "--no-liveness-probe", "--lease-ttl-sec=3600"]);
    let _liar = Liar::that_tells(told, lie.grows, &service, &planner);
    let begun = Instant::now();
    let settings = [("rfork_seed_wait_sec", json!(0)), ("rfork_request_timeout_sec", json!(5))];
    let worker = start(&[], lie.name, &told.model, &planner.url(), &settings);
    told.is_right_beside_one_that_loads(lie.name, &worker, begun, &planner);
}

/// All at once: most of the time is waited.
#[test]
fn a_seed_that_lies_of_what_it_holds_costs_who_reads_by_address_neither_its_load_nor_its_bytes() {
    let model = Model::new(1, 1);
    let (_worker, _planner, metadata) = honest(&model);
    let told = Truth { model, key: KEY.to_owned(), metadata };
    std::thread::scope(|scope| {
        for lie in &LIES {
            let told = &told;
            scope.spawn(move || is_loaded_beside(told, lie));
        }
    });
}
