//! Has a server apply binlog files, for `script/bench replay`: what an agent's incremental restore does, without the
//! agent. `replay_files SOCKET relaxed|durable FILE…`; `root` without a password. Prints a line of JSON.

#![expect(clippy::print_stdout, reason = "its answer")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use backup::replay::{Have, LeftOut, LocalHistory, Target, Wish, apply, plan_local, state_before};
use mysql_client::credentials::{Login, Password};
use mysql_client::replay::{Durability, replay_settings};
use mysql_client::{Endpoint, Server};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().context("which socket?")?;
    let how = arguments.next().context("relaxed or durable?")?;
    let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    let login = Login::new("root", Password::new(""));
    let endpoint = Endpoint::Socket(socket.into());
    let mut server = Server::connect(&endpoint, &login, Duration::from_mins(10)).await?;
    let before = state_before(&mut server).await?;
    let durability = match how.as_str() {
        "relaxed" => Durability::Relaxed,
        // As the server is, but for its relay log, which a client that pipes statements does not have.
        "durable" => Durability::Kept,
        _ => bail!("relaxed or durable, not {how}"),
    };
    let processors = std::thread::available_parallelism()?.get();
    let settings = replay_settings(server.flavor(), durability, u32::try_from(processors)?);
    let have = Have::transactions(&server.transactions().await?);
    let planning = Instant::now();
    let plan = plan_local(&files, &have, &Target::End, LeftOut::default()).await?;
    let planned = planning.elapsed();
    let wish = Wish {
        reached: plan.reached.clone(),
        served_ids: plan.served_ids,
        settings,
        certificate_file: std::env::temp_dir().join(format!("replay-source-{}.pem", std::process::id())),
    };
    let history = LocalHistory {
        ranges: plan.ranges,
        left_out: plan.left_out,
        reached: plan.reached,
    };
    let applying = Instant::now();
    apply(&mut server, history, &wish, &before, |_| {}).await?;
    let memory = std::fs::read_to_string("/proc/self/status")?;
    let peak = memory
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|text| text.split_whitespace().next())
        .unwrap_or("0");
    println!(
        "{{\"transactions\":{},\"bytes\":{},\"plan_seconds\":{},\"seconds\":{},\"peak_kibibytes\":{peak}}}",
        plan.summary.transactions,
        plan.summary.bytes,
        planned.as_secs_f64(),
        applying.elapsed().as_secs_f64(),
    );
    Ok(())
}
