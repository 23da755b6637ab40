use super::*;
use std::os::unix::fs::symlink;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

struct Lab {
    dir: tempfile::TempDir,
    watcher: Watcher,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("postern.toml"), "one").unwrap();
        std::fs::write(dir.path().join("plugin.wasm"), "one").unwrap();
        Lab::of(dir, "postern.toml")
    }

    fn of(dir: tempfile::TempDir, config: &str) -> Self {
        let plugins = vec![dir.path().join("plugin.wasm")];
        let watcher = Watcher::new(&dir.path().join(config), plugins);
        Lab { dir, watcher }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn sees(&mut self) {
        timeout(SOON, self.watcher.changed())
            .await
            .expect("the change was not seen");
    }

    async fn sees_nothing(&mut self) {
        let seen = timeout(SETTLE * 4, self.watcher.changed()).await;
        assert!(seen.is_err(), "a change was seen where there was none");
    }
}

#[tokio::test]
async fn every_way_of_saving_is_seen_once() {
    let mut lab = Lab::new();
    lab.sees_nothing().await;
    // In place.
    std::fs::write(lab.path("postern.toml"), "two").unwrap();
    lab.sees().await;
    lab.sees_nothing().await;
    // Renamed over.
    std::fs::write(lab.path("new"), "three").unwrap();
    std::fs::rename(lab.path("new"), lab.path("postern.toml")).unwrap();
    lab.sees().await;
    // A directory that was not there before.
    std::fs::create_dir(lab.path("conf.d")).unwrap();
    std::fs::write(lab.path("conf.d/a.toml"), "a").unwrap();
    lab.sees().await;
    std::fs::write(lab.path("conf.d/a.toml"), "b").unwrap();
    lab.sees().await;
    // A plugin.
    std::fs::write(lab.path("plugin.wasm"), "two").unwrap();
    lab.sees().await;
    // Gone, and back.
    std::fs::remove_file(lab.path("postern.toml")).unwrap();
    lab.sees().await;
    std::fs::write(lab.path("postern.toml"), "three").unwrap();
    lab.sees().await;
}

#[tokio::test]
async fn what_is_not_ours_or_the_same_is_no_news() {
    let mut lab = Lab::new();
    std::fs::write(lab.path("other.log"), "x").unwrap();
    std::fs::write(lab.path("postern.toml"), "one").unwrap();
    lab.sees_nothing().await;
}

#[tokio::test]
async fn a_symlink_that_is_swapped_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    for (version, text) in [("..1", "one"), ("..2", "two")] {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        std::fs::write(dir.path().join(version).join("postern.toml"), text).unwrap();
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/postern.toml", dir.path().join("postern.toml")).unwrap();
    let mut lab = Lab::of(dir, "postern.toml");
    symlink("..2", lab.path("..data_tmp")).unwrap();
    std::fs::rename(lab.path("..data_tmp"), lab.path("..data")).unwrap();
    lab.sees().await;
    // What is behind it now is watched, too.
    std::fs::write(lab.path("..2/postern.toml"), "three").unwrap();
    lab.sees().await;
    // A directory above.
    let above = tempfile::tempdir().unwrap();
    for version in ["v1", "v2"] {
        std::fs::create_dir(above.path().join(version)).unwrap();
        std::fs::write(above.path().join(version).join("c.toml"), version).unwrap();
    }
    symlink("v1", above.path().join("now")).unwrap();
    let mut lab = Lab::of(above, "now/c.toml");
    symlink("v2", lab.path("next")).unwrap();
    std::fs::rename(lab.path("next"), lab.path("now")).unwrap();
    lab.sees().await;
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_waited_for() {
    const WRITING: Duration = Duration::from_secs(1);
    let mut lab = Lab::new();
    let file = lab.path("postern.toml");
    let began = Instant::now();
    let writer = std::thread::spawn(move || {
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        for n in 0.. {
            std::fs::write(&file, format!("part {n}")).unwrap();
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if began.elapsed() > WRITING {
                return longest;
            }
            std::thread::sleep(SETTLE / 10);
        }
        longest
    });
    lab.sees().await;
    let seen = began.elapsed();
    let longest = writer.join().unwrap();
    // On a machine that stood still for so long the file had indeed come to rest.
    if longest < SETTLE / 2 {
        assert!(seen >= WRITING, "{seen:?}");
    }
}

#[tokio::test]
async fn a_wait_that_was_given_up_misses_nothing() {
    let mut lab = Lab::new();
    std::fs::write(lab.path("postern.toml"), "two").unwrap();
    for _ in 0..5 {
        let _ = timeout(SETTLE / 4, lab.watcher.changed()).await;
    }
    lab.sees().await;
}

#[tokio::test]
async fn what_was_read_elsewhere_before_it_came_to_rest_is_news_even_when_it_is_the_old_again() {
    let mut lab = Lab::new();
    let there_and_back = |lab: &Lab| {
        std::fs::write(lab.path("postern.toml"), "two").unwrap();
        std::fs::write(lab.path("postern.toml"), "one").unwrap();
    };
    there_and_back(&lab);
    lab.sees_nothing().await;
    lab.watcher.read_elsewhere();
    there_and_back(&lab);
    lab.sees().await;
    lab.sees_nothing().await;
}
