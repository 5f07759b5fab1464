//! A worker's settings, each described once: flags of `rfork worker`, its help, the fields of the JSON object that
//! inference engines pass on, the environment and documents come from this table. What they mean is
//! [`crate::config::Config`].
//!
//! The first ones are vLLM Ascend's, and read as it reads them, so that a configuration that works there works here:
//! those that are `lenient` pass a bad value over for the environment and then for the default.

use rfork_protocol::settings::{Section, Setting, Takes};

/// A year. A longer time is a slip, and would overflow timers.
const MAX_SECONDS: f64 = 365.0 * 86_400.0;
const SECONDS: Takes = Takes::Positive(MAX_SECONDS);
const AT_LEAST_ONE: Takes = Takes::Whole(1, u32::MAX as u64);

/// The table.
pub const SETTINGS: &[Section] = &[
    Section {
        title: "Model and planner",
        settings: &[
            Setting::new("model_url", Takes::Text, "Which model; part of the seed key")
                .value("URL")
                .env("MODEL_URL")
                .required()
                .lenient(),
            Setting::new(
                "model_deploy_strategy_name",
                Takes::Text,
                "Which deployment of it; part of the seed key",
            )
            .value("NAME")
            .env("MODEL_DEPLOY_STRATEGY_NAME")
            .required()
            .lenient(),
            Setting::new("rfork_scheduler_url", Takes::Text, "The planner's URL, as http://planner:1223")
                .value("URL")
                .env("RFORK_SCHEDULER_URL")
                .required()
                .lenient()
                .secret(),
            Setting::new("rfork_token_file", Takes::Text, "A file that holds the token which the planner is shown")
                .value("FILE")
                .env("RFORK_TOKEN_FILE")
                .otherwise("none")
                .more("It is read for each request, so that it may change"),
            Setting::new(
                "rfork_token_over_http",
                Takes::Switch,
                "Show it to a planner on another machine without TLS, too, where others may read it on its way",
            )
            .env("RFORK_TOKEN_OVER_HTTP")
            .default("false"),
            Setting::new(
                "rfork_planner_ca_file",
                Takes::Text,
                "A PEM file with the CAs that vouch for a planner at https://; nobody else does then",
            )
            .value("FILE")
            .env("RFORK_PLANNER_CA_FILE")
            .otherwise("the system's CAs")
            .more("It is looked at for each request, so that it may change"),
            Setting::new(
                "rfork_request_timeout_sec",
                SECONDS,
                "Seconds that a request to planner or seed may take",
            )
            .value("SECONDS")
            .env("RFORK_REQUEST_TIMEOUT_SEC")
            .default("10")
            .lenient(),
            Setting::new(
                "rfork_seed_wait_sec",
                Takes::PositiveOrZero(MAX_SECONDS),
                "Seconds to wait for a seed, or for a worker that reads storage without progress, before going to storage; 0 asks once",
            )
            .value("SECONDS")
            .otherwise("0; 30 once it has read from a seed in a chain, or while another worker reads storage"),
            Setting::new(
                "rfork_model_identity_headers",
                Takes::Bit,
                "Tell the planner model, deployment and whether it is a draft, in headers of each request",
            )
            .env("RFORK_MODEL_IDENTITY_HEADERS")
            .default("false")
            .more("Model and deployment must be ASCII then")
            .null_refused(),
            Setting::new(
                "rfork_seed_key_separator",
                Takes::Text,
                "Between the parts of a readable seed key",
            )
            .env("RFORK_SEED_KEY_SEPARATOR")
            .default("$")
            .more("vLLM Ascend knows it until 2026-08; later workers have digests for keys, without parts")
            .lenient(),
        ],
    },
    Section {
        title: "Serving",
        settings: &[
            Setting::new("rfork_seed_bind_host", Takes::Text, "Address on which to listen")
                .value("ADDRESS")
                .env("RFORK_SEED_BIND_HOST")
                .otherwise("every address, IPv4 and IPv6")
                .more("0.0.0.0 is every IPv4 address, :: every one of both families")
                .lenient(),
            Setting::new("rfork_seed_advertise_host", Takes::Text, "Host that others are told")
                .value("HOST")
                .env("RFORK_SEED_ADVERTISE_HOST")
                .otherwise("the address from which the planner was reached")
                .lenient(),
            Setting::new(
                "rfork_seed_port_base",
                Takes::Whole(0, 65_535),
                "Serve metadata on this port + 2 x global rank, a draft on the next; 0 takes a free port",
            )
            .value("PORT")
            .default("0")
            .more("A port that is taken, or above 65535, is replaced by a free one, with a warning"),
            Setting::new(
                "rfork_seed_timeout_sec",
                SECONDS,
                "Seconds that the own seed service may take to become healthy",
            )
            .value("SECONDS")
            .env("RFORK_SEED_TIMEOUT_SEC")
            .default("5")
            .lenient(),
            Setting::new("rfork_heartbeat_interval_sec", SECONDS, "Seconds between two heartbeats")
                .value("SECONDS")
                .default("30")
                .null_refused(),
            Setting::new(
                "rfork_fork_while_loading",
                Takes::Switch,
                "Serve what is held while the rest still loads, and read from workers that do",
            )
            .otherwise("on over TCP, off for NPUs")
            .more("With a planner that knows of it. Nobody has tried it on an NPU"),
            Setting::new(
                "rfork_seed_max_readers",
                AT_LEAST_ONE,
                "Connections that are served at once; a reader uses two",
            )
            .value("COUNT")
            .default("16"),
            Setting::new(
                "rfork_seed_max_gib_per_sec",
                Takes::Positive(f64::MAX),
                "What is sent to readers at most, in GiB/s",
            )
            .value("GIB")
            .otherwise("unlimited"),
            Setting::new(
                "rfork_digest",
                Takes::OneOf(&["crc64nvme", "blake3"]),
                "How chunks are digested of weights that this worker reads from storage",
            )
            .value("crc64nvme|blake3")
            .env("RFORK_DIGEST")
            .default("crc64nvme")
            .more("blake3 guards against who may choose bytes, too, and takes longer; readers take both. All workers of a key \
                 should have the same"),
            Setting::new(
                "rfork_seed_metadata_fields",
                Takes::NumberOf(&[3, 5]),
                "Fields a tensor in the served metadata: 3 or 5",
            )
            .value("3|5")
            .otherwise("3 for a readable key, 5 for a digest"),
        ],
    },
    Section {
        title: "Reading from a seed",
        settings: &[
            Setting::new(
                "rfork_lease_release_max_attempts",
                AT_LEAST_ONE,
                "How often the release of a lease is tried",
            )
            .value("COUNT")
            .default("3")
            .null_refused(),
            Setting::new(
                "rfork_lease_release_retry_interval_sec",
                SECONDS,
                "Seconds between two tries",
            )
            .value("SECONDS")
            .default("30")
            .null_refused(),
            Setting::new(
                "rfork_transfer_timeout_sec",
                SECONDS,
                "Seconds that a call of YuanRong's library may last, besides its bytes' time, until it is given up",
            )
            .value("SECONDS")
            .default("30")
            .more("No shorter than the time-outs that the library may have itself"),
        ],
    },
    Section {
        title: "Place",
        settings: &[
            Setting::new("rfork_zone", Takes::Name, "The zone that this worker is in; near seeds are preferred")
                .env("RFORK_ZONE")
                .otherwise("not told"),
            Setting::new("rfork_rack", Takes::Name, "Its rack").env("RFORK_RACK").otherwise("not told"),
            Setting::new("rfork_host", Takes::Name, "Its host").env("RFORK_HOST").otherwise("not told"),
            Setting::new(
                "rfork_instance_id",
                Takes::Name,
                "The inference instance that it is a rank of; one is served from one, where it can be",
            )
            .env("RFORK_INSTANCE_ID")
            .otherwise("not told"),
        ],
    },
];
