//! Sizes for people. Metrics and statements have bytes.

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `512 B`, `1.5 KiB`, `64.0 MiB`. The page does the same, in `format.js`.
pub fn size(bytes: u64) -> String {
    let mut amount = bytes as f64 / 1024.0;
    if amount < 1.0 {
        return format!("{bytes} B");
    }
    let mut unit = "";
    for larger in UNITS {
        unit = larger;
        if amount < 1023.95 {
            break;
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_powers_of_1024() {
        for (bytes, told) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (3 << 30, "3.0 GiB"),
            (5 << 40, "5.0 TiB"),
            (2 << 50, "2.0 PiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), told, "{bytes}");
        }
    }
}
