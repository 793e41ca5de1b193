//! How the clients of the stores that are no directory are made.

use std::sync::Arc;
use std::time::Duration;

use object_store::multipart::MultipartStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::{BACKOFF, RETRY_LIMIT};

/// How long the store may say nothing in the middle of an answer.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// One client of a store that takes uploads in parts.
pub(super) fn of_parts<S: ObjectStore + MultipartStore>(
    store: S,
) -> (Arc<dyn ObjectStore>, Arc<dyn MultipartStore>) {
    let store = Arc::new(store);
    (Arc::clone(&store) as Arc<dyn ObjectStore>, store)
}

/// Applies options to a builder; those of the HTTP client are handled apart.
pub(super) fn configure<B>(
    builder: B,
    options: &[(String, String)],
    set: impl Fn(B, &str, &str) -> Result<B, object_store::Error>,
) -> Result<B, object_store::Error> {
    options
        .iter()
        .filter(|(key, _)| key != ALLOW_HTTP)
        .try_fold(builder, |builder, (key, value)| set(builder, key, value))
}

/// The option that allows a store without TLS, for stores on the same machine or network.
const ALLOW_HTTP: &str = "allow_http";

pub(super) fn client(options: &[(String, String)]) -> ClientOptions {
    let allow_http = options
        .iter()
        .any(|(key, value)| key == ALLOW_HTTP && value == "true")
        || std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true");
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_connect_timeout(Duration::from_secs(5))
        .with_read_timeout(SILENCE_LIMIT)
        // The whole of a large part on a slow line; silence is what ends a request.
        .with_timeout(Duration::from_mins(10))
}

pub(super) fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BACKOFF,
        // The time is the limit: ten tries, its default, are over within seconds, and this many never are.
        max_retries: 1000,
        retry_timeout: RETRY_LIMIT,
    }
}
