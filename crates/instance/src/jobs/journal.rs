//! `jobs.json` in the backup log directory: the jobs of this instance, running or ended.

use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use api::job::{JobDocument, JobState, Work};
use serde::{Deserialize, Serialize};
use topology::JobId;

use crate::files::write_atomically;

const FORMAT: u32 = 1;

/// As many are remembered: a day's worth of a schedule that does something every half hour.
const MOST: usize = 50;

/// What the last searches have found is remembered, in memory: long enough to be read.
const MOST_FINDINGS: usize = 3;

/// The jobs on disk.
pub(super) struct Journal {
    path: PathBuf,
    /// The newest first.
    documents: Vec<JobDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    jobs: Vec<JobDocument>,
}

impl Journal {
    /// The journal at `path`; empty when there is none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub(super) fn load(path: PathBuf) -> anyhow::Result<Self> {
        let documents = match std::fs::read(&path) {
            Ok(text) => {
                let stored: Stored = serde_json::from_slice(&text).with_context(|| {
                    format!(
                        "read `{}`; it only tells of former jobs and can be removed",
                        path.display()
                    )
                })?;
                ensure!(
                    stored.format <= FORMAT,
                    "`{}` was written by a newer mysql-service; use that one",
                    path.display()
                );
                stored.jobs
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
        };
        Ok(Self { path, documents })
    }

    pub(super) fn documents(&self) -> &[JobDocument] {
        &self.documents
    }

    /// Notes a job, or how it stands now, durably.
    ///
    /// # Errors
    /// When the file cannot be written; the journal is as before.
    pub(super) fn put(&mut self, document: JobDocument) -> anyhow::Result<()> {
        let mut documents = self.documents.clone();
        match documents.iter_mut().find(|other| other.id == document.id) {
            Some(known) => *known = document,
            None => documents.insert(0, document),
        }
        while documents.len() > MOST {
            let Some(oldest) = documents.iter().rposition(|job| job.state.is_final()) else {
                break;
            };
            documents.remove(oldest);
        }
        self.save(documents)
    }

    /// Those that run have failed: their agent is gone. Returns them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn fail_running(&mut self, now: &str) -> anyhow::Result<Vec<JobId>> {
        let mut documents = self.documents.clone();
        let mut failed = Vec::new();
        for job in documents.iter_mut().filter(|job| !job.state.is_final()) {
            job.state = JobState::Failed;
            job.ended = Some(now.to_owned());
            job.step.clear();
            "the agent ended while it ran; what it left in the store is no backup, and a prune removes it"
                .clone_into(&mut job.outcome);
            failed.push(job.id.clone());
        }
        if !failed.is_empty() {
            self.save(documents)?;
        }
        Ok(failed)
    }

    fn save(&mut self, documents: Vec<JobDocument>) -> anyhow::Result<()> {
        let stored = Stored {
            format: FORMAT,
            jobs: documents.iter().map(without_findings).collect(),
        };
        let text = serde_json::to_vec_pretty(&stored).context("print the journal of jobs")?;
        write_atomically(&self.path, &text, 0o640)
            .with_context(|| format!("write `{}`", self.path.display()))?;
        self.documents = documents;
        let searches = self.documents.iter_mut().filter(|job| is_search(job));
        for old in searches.skip(MOST_FINDINGS) {
            old.result = None;
        }
        Ok(())
    }
}

fn is_search(job: &JobDocument) -> bool {
    matches!(job.work, Work::SearchArchive(_))
}

/// What a search has found may have rows of the applications' tables, and is large: it is for whoever asked.
fn without_findings(job: &JobDocument) -> JobDocument {
    JobDocument {
        result: job.result.clone().filter(|_| !is_search(job)),
        ..job.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Job;

    fn job(number: usize) -> JobDocument {
        let id = format!("job-{number}").parse().unwrap();
        Job::new(id, Work::CleanBackups, "2026-11-22T03:00:00Z".to_owned()).document()
    }

    #[test]
    fn what_ran_when_the_agent_ended_has_failed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs.json");
        let mut journal = Journal::load(path.clone()).unwrap();
        journal.put(job(1)).unwrap();
        let mut done = job(2);
        done.state = JobState::Done;
        journal.put(done).unwrap();
        let mut next = Journal::load(path.clone()).unwrap();
        assert_eq!(next.fail_running("2026-11-22T04:00:00Z").unwrap(), [job(1).id]);
        let states: Vec<JobState> = next.documents().iter().map(|job| job.state).collect();
        assert_eq!(states, [JobState::Done, JobState::Failed]);
        assert!(Journal::load(path).unwrap().fail_running("").unwrap().is_empty());
    }

    #[test]
    fn what_a_search_found_is_told_and_not_written_down() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs.json");
        let mut journal = Journal::load(path.clone()).unwrap();
        for number in 0..=MOST_FINDINGS {
            let mut found = job(number);
            found.work = Work::SearchArchive(api::job::Search::default());
            found.result = Some("a row".into());
            journal.put(found).unwrap();
        }
        let told = |journal: &Journal| {
            journal
                .documents()
                .iter()
                .filter(|job| job.result.is_some())
                .count()
        };
        assert_eq!(told(&journal), MOST_FINDINGS);
        assert_eq!(told(&Journal::load(path).unwrap()), 0);
    }

    #[test]
    fn old_ones_are_forgotten_and_running_ones_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::load(directory.path().join("jobs.json")).unwrap();
        journal.put(job(0)).unwrap();
        for number in 1..=MOST + 3 {
            let mut ended = job(number);
            ended.state = JobState::Failed;
            journal.put(ended).unwrap();
        }
        assert_eq!(journal.documents().len(), MOST);
        assert!(journal.documents().iter().any(|other| other.id == job(0).id));
        assert!(!journal.documents().iter().any(|other| other.id == job(1).id));
    }
}
