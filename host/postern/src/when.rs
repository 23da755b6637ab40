//! Times as people say them: "3 min ago", "in 11 h", and the local date and time beside it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn now() -> i64 {
    unix(SystemTime::now())
}

fn unix(t: SystemTime) -> i64 {
    t.duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// "3 min ago", "in 5 h", "just now".
pub fn relative(now: i64, t: i64) -> String {
    let distance = now.saturating_sub(t);
    match distance {
        0..=9 => "just now".to_owned(),
        10.. => format!("{} ago", span(distance)),
        _ => format!("in {}", span(-distance)),
    }
}

/// The largest unit that says enough: 90 s is "90 s", 2 h 40 min is "2 h 40 min".
pub fn span(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{minutes} min"),
        7200..36_000 if minutes % 60 != 0 => format!("{hours} h {} min", minutes % 60),
        7200..172_800 => format!("{hours} h"),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Local date and time to the minute.
pub fn local(t: i64) -> String {
    strftime(t, "%Y-%m-%d %H:%M")
}

/// Local date and time to the second.
pub fn local_seconds(t: i64) -> String {
    strftime(t, "%Y-%m-%d %H:%M:%S")
}

fn strftime(t: i64, format: &str) -> String {
    match jiff::Timestamp::from_second(t) {
        Ok(t) => t
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime(format)
            .to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// RFC 3339, for JSON.
pub fn rfc3339(t: i64) -> Option<String> {
    Some(jiff::Timestamp::from_second(t).ok()?.to_string())
}

/// Reads an RFC 3339 time.
pub fn parse(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(jiff::Timestamp::as_second)
}

/// A duration on the command line: `30m`, `8h`, `7d`.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let d = humantime::parse_duration(text)
        .map_err(|e| format!("{e}; write for example 30m, 8h or 7d"))?;
    if d.as_secs() == 0 {
        Err("must be at least 1s".to_owned())
    } else {
        Ok(d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_times_read_naturally() {
        let now = 1_000_000;
        for (t, want) in [
            (now, "just now"),
            (now - 9, "just now"),
            (now - 42, "42 s ago"),
            (now - 200, "3 min ago"),
            (now - 5 * 3600, "5 h ago"),
            (now - 9600, "2 h 40 min ago"),
            (now - 3 * 86_400, "3 days ago"),
            (now + 5, "in 5 s"),
            (now + 1799, "in 29 min"),
            (now + 11 * 3600 + 60, "in 11 h"),
        ] {
            assert_eq!(relative(now, t), want);
        }
    }

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!(parse_ttl("30m"), Ok(Duration::from_secs(1800)));
        assert!(parse_ttl("30").is_err_and(|e| e.contains("30m")));
        assert!(parse_ttl("0s").is_err());
    }
}
