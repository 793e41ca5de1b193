//! `scale-out`: an empty instance becomes a running Slave.

use api::backup::{ScaleOutRequest, ScaleOutSource};

use super::{restore, status, work};
use crate::cli::{Output, ScaleOut, ScaleOutFrom};
use crate::failure::Failure;
use crate::output::Style;
use crate::{client, output};

pub(crate) async fn run(options: &ScaleOut) -> Result<(), Failure> {
    let client = client::connect(&options.client)?;
    if let Some(discard) = &options.discard {
        restore::confirm(
            &options.waiting,
            &format!(
                "The data directory {discard} of {} is thrown away.",
                options.instance
            ),
        )?;
    }
    let request = ScaleOutRequest {
        instance: options.instance.clone(),
        from: options.from.map(|from| match from {
            ScaleOutFrom::Store => ScaleOutSource::Store,
            ScaleOutFrom::Donor => ScaleOutSource::Donor,
        }),
        discard: options.discard.clone(),
    };
    let answer = client.change("/api/v1/scale-out", &request).await?;
    work::conclude(&client, answer, options.client.output, &options.waiting).await?;
    if options.waiting.waits() && options.client.output == Output::Table {
        let cluster = client.cluster().await?;
        output::print(&status::render(&cluster, Style::of_stdout()))?;
    }
    Ok(())
}
