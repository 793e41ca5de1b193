//! Temporary: the proxy by itself.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::env::args().nth(1).unwrap_or_default();
    let config = proxy::ProxyConfig::load(path.as_ref())?;
    let (stop, shutdown) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok()?;
        term.recv().await;
        stop.send(true).ok()
    });
    proxy::run(config, shutdown).await
}
