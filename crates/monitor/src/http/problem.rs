//! Errors as RFC 9457 problem documents, and the extractors that answer with them.

use api::problem::{self, Problem};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use topology::{OperationId, Refusal};

use crate::controller::Denial;
use crate::store::StoreError;

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct ProblemResponse(Box<Problem>);

impl ProblemResponse {
    /// A problem of a kind of its own, such as `/problems/not-found`.
    pub(crate) fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem {
            kind: kind.to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            reasons: Vec::new(),
            operation: None,
        }))
    }

    /// What was asked for makes no sense.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "/problems/bad-request",
            "Bad request",
            detail,
        )
    }

    /// There is no such thing.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, problem::NOT_FOUND, "Not found", detail)
    }

    /// The caller did not show the token.
    pub(crate) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "/problems/unauthorized",
            "Unauthorized",
            "this needs `Authorization: Bearer` with the cluster's agent token",
        )
    }

    /// A change was refused.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        let mut response = Self::new(
            StatusCode::CONFLICT,
            problem::REFUSED,
            "Refused",
            refusal.to_string(),
        );
        response.0.reasons = refusal.reasons;
        response
    }

    fn busy(operation: OperationId, title: &str) -> Self {
        let mut response = Self::new(
            StatusCode::CONFLICT,
            problem::BUSY,
            "Another operation is in progress",
            format!("{operation} is in progress ({title}): wait for its end"),
        );
        response.0.operation = Some(operation);
        response
    }

    /// The monitor cannot do what it should.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "/problems/unavailable",
            "Unavailable",
            detail,
        )
    }
}

impl From<StoreError> for ProblemResponse {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a request cannot be answered");
        Self::unavailable(error.to_string())
    }
}

impl From<Denial> for ProblemResponse {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Refused(refusal) => Self::refused(refusal),
            Denial::Busy { operation, title } => Self::busy(operation, &title),
            Denial::KeyUsedOtherwise => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "/problems/idempotency-key-reused",
                "Idempotency-Key used before",
                "this `Idempotency-Key` was sent within the last 24 hours with another request: take a new one",
            ),
            Denial::Store(error) => error.into(),
            Denial::Stopping => stopping(),
        }
    }
}

/// The answer when the controller is gone.
pub(crate) fn stopping() -> ProblemResponse {
    ProblemResponse::unavailable("the monitor is being stopped: ask again when it is up")
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&*self.0)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(problem::MEDIA_TYPE),
        );
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(super) async fn no_such_path(uri: Uri) -> ProblemResponse {
    ProblemResponse::not_found(format!(
        "there is nothing at `{}`: /api/v1/openapi.json tells what there is",
        uri.path()
    ))
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ProblemResponse {
    ProblemResponse::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "/problems/method-not-allowed",
        "Method not allowed",
        format!(
            "`{}` does not take {method}: /api/v1/openapi.json tells what it takes",
            uri.path()
        ),
    )
}

/// A JSON body, read whole, with its bytes. Only `application/json` is taken: a page of another site cannot send
/// that without being asked first. An empty body is `{}`.
pub(crate) struct Json<T> {
    pub(crate) value: T,
    pub(crate) bytes: Bytes,
}

impl<T: DeserializeOwned, A: Send + Sync> FromRequest<A> for Json<T> {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, state: &A) -> Result<Self, Self::Rejection> {
        let content_type = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(|value| value.trim().to_ascii_lowercase());
        if content_type.as_deref() != Some("application/json") {
            return Err(ProblemResponse::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "/problems/unsupported-media-type",
                "Unsupported media type",
                "send a JSON body with `Content-Type: application/json`",
            ));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| body_problem(&rejection))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let value = serde_json::from_slice(text).map_err(|error| {
            ProblemResponse::bad_request(format!("the body is not as it should be: {error}"))
        })?;
        Ok(Self { value, bytes })
    }
}

fn body_problem(rejection: &BytesRejection) -> ProblemResponse {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        ProblemResponse::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "/problems/too-large",
            "Too large",
            format!("the body is longer than {} bytes", super::MAX_BODY_BYTES),
        )
    } else {
        ProblemResponse::bad_request(format!("the body could not be read: {}", rejection.body_text()))
    }
}

/// The part of the path between braces.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, A: Send + Sync> FromRequestParts<A> for Path<T> {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, state: &A) -> Result<Self, Self::Rejection> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection| ProblemResponse::not_found(rejection.body_text()))
    }
}

/// The part after the question mark.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, A: Send + Sync> FromRequestParts<A> for Query<T> {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, state: &A) -> Result<Self, Self::Rejection> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| ProblemResponse::bad_request(rejection.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_named() {
        let denial = Denial::Busy {
            operation: "op-7".parse().unwrap(),
            title: "Pause a".to_owned(),
        };
        let ProblemResponse(told) = denial.into();
        assert_eq!((told.status, &*told.kind), (409, problem::BUSY));
        assert_eq!(told.operation, Some("op-7".parse().unwrap()));
        assert!(told.detail.contains("op-7 is in progress (Pause a)"), "{told:?}");
    }
}
