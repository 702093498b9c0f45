//! Images with each field of their headers and tables at its bounds and beyond: every one is either refused with a way
//! out, or a disk that harms nobody. Never a panic, never much memory or time.

use std::time::{Duration, Instant};
use viv_block::trial::{Patch, Place, TEMPLATES, fields, patch, play, template, values};
use viv_model::DiskFormat;

/// Longest that one image may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn image(place: &Place, format: DiskFormat, which: usize) -> Vec<u8> {
    template(format, which, &place.file("template")).unwrap()
}

#[test]
fn templates_are_sound() {
    let place = Place::new("sound").unwrap();
    for format in DiskFormat::ALL {
        for which in 0..TEMPLATES {
            let path = place.file("image");
            std::fs::write(&path, image(&place, format, which)).unwrap();
            std::fs::write(place.file("flat"), vec![1; 1 << 20]).unwrap();
            play(&path, format, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        }
    }
}

/// Plays with an image; gives whether it was refused.
fn refused(place: &Place, format: DiskFormat, bytes: &[u8], what: &str) -> bool {
    let path = place.file("image");
    std::fs::write(&path, bytes).unwrap();
    let begin = Instant::now();
    let played = play(&path, format, &[0, 1, 50, 90, 128, 200, 3, 255, 254]);
    assert!(begin.elapsed() < PATIENCE, "{what}: {:?}", begin.elapsed());
    if let Err(fault) = &played {
        assert!(!fault.fix.is_empty() && !fault.message.is_empty(), "{what}: {fault}");
    }
    played.is_err()
}

#[test]
fn fields_at_their_bounds() {
    let place = Place::new("bounds").unwrap();
    let (mut images, mut bad) = (0, 0);
    for format in DiskFormat::ALL {
        for which in 0..TEMPLATES {
            let sound = image(&place, format, which);
            for (at, len) in fields(format, which) {
                for value in values(sound.len() as u64) {
                    // All values at each place take long: the long form has all.
                    if std::env::var_os("VIV_DISK_OPERATIONS").is_none()
                        && (at / 4).wrapping_add(value) % 5 != 0
                    {
                        continue;
                    }
                    let mut changed = sound.clone();
                    patch(&mut changed, format, &[Patch { at, len, value }], true);
                    let what = format!("{format} {which}: {value:#x} at {at}");
                    bad += u64::from(refused(&place, format, &changed, &what));
                    images += 1;
                }
            }
        }
    }
    assert!(images >= 200 && bad >= 100, "{bad} of {images} images were refused");
}

#[test]
fn images_that_are_cut_off() {
    let place = Place::new("cut").unwrap();
    for format in DiskFormat::ALL {
        let sound = image(&place, format, 0);
        for len in [1, 3, 64, 511, 512, 1024, 4096, 65536, sound.len() / 2, sound.len() - 1] {
            let cut = &sound[..len.min(sound.len())];
            refused(&place, format, cut, &format!("{format} cut to {len}"));
        }
    }
}
