//! The date for chat templates that ask for it (`strftime_now`), in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The present moment in a `strftime` format.
pub(crate) fn format_now(format: &str) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format_unix(format, seconds)
}

/// `seconds` since 1970 in a `strftime` format; conversions that no template uses are left as they are.
fn format_unix(format: &str, seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (name, weekday) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut conversion = chars.next().unwrap_or('%');
        let padded = conversion != '-';
        if !padded {
            conversion = chars.next().unwrap_or('-');
        }
        let two = |v: u64| if padded { format!("{v:02}") } else { v.to_string() };
        out.push_str(&match conversion {
            'd' => two(day),
            'e' => format!("{day:2}"),
            'm' => two(month),
            'b' | 'h' => name[..3].to_string(),
            'B' => name.to_string(),
            'a' => weekday[..3].to_string(),
            'A' => weekday.to_string(),
            'Y' => year.to_string(),
            'y' => two(year % 100),
            'H' => two(hour),
            'I' => two((hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_string(),
            'M' => two(minute),
            'S' => two(second % 60),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            '%' => "%".into(),
            other => format!("%{other}"),
        });
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian, 400-year cycles of 146,097 days).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        assert_eq!(format_unix("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(format_unix("%A %-d %B %Y, %H:%M", 951_782_400 + 3_660), "Tuesday 29 February 2000, 01:01");
        assert_eq!(format_unix("%F %I %p 100%%", 1_767_225_599), "2025-12-31 11 PM 100%");
    }
}
