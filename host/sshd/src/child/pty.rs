//! A pseudo terminal with the modes and size that the client asked for (RFC 4254 §8).

use super::request::PtyRequest;
use nix::fcntl::{OFlag, open as open_file};
use nix::libc;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

pub struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
    pub name: String,
}

mod ioctl {
    use nix::libc;
    nix::ioctl_write_int_bad!(tiocsctty, libc::TIOCSCTTY);
    nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);
}

/// Opens a PTY that belongs to this process's uid and makes it the controlling terminal. The caller is a session leader.
pub fn open(want: &PtyRequest) -> Result<Pty, String> {
    let failed = |what: &'static str| {
        move |e: nix::Error| format!("cannot allocate a terminal ({what}): {}", e.desc())
    };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).map_err(failed("posix_openpt"))?;
    grantpt(&master).map_err(failed("grantpt"))?;
    unlockpt(&master).map_err(failed("unlockpt"))?;
    let name = ptsname_r(&master).map_err(failed("ptsname"))?;
    let slave = open_file(name.as_str(), flags, Mode::empty()).map_err(failed("open"))?;
    // SAFETY: a descriptor that is ours; 0: don't steal the terminal of another session.
    unsafe { ioctl::tiocsctty(slave.as_raw_fd(), 0) }.map_err(failed("TIOCSCTTY"))?;
    set_size(&slave, want).map_err(failed("TIOCSWINSZ"))?;

    let mut modes: libc::termios = tcgetattr(&slave).map_err(failed("tcgetattr"))?.into();
    apply(&mut modes, &want.modes);
    tcsetattr(&slave, SetArg::TCSANOW, &Termios::from(modes)).map_err(failed("tcsetattr"))?;
    // SAFETY: into_raw_fd gives up ownership, which the new OwnedFd takes.
    let master = unsafe { OwnedFd::from_raw_fd(master.into_raw_fd()) };
    Ok(Pty {
        master,
        slave,
        name,
    })
}

/// Tells the terminal (either end) its size; the kernel sends SIGWINCH.
pub fn set_size(fd: &impl AsRawFd, want: &PtyRequest) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: want.rows,
        ws_col: want.cols,
        ws_xpixel: want.xpixel,
        ws_ypixel: want.ypixel,
    };
    // SAFETY: `size` lives across the call, which only reads it.
    unsafe { ioctl::tiocswinsz(fd.as_raw_fd(), &size) }.map(drop)
}

enum Mode8 {
    Char(usize),
    In(libc::tcflag_t),
    Out(libc::tcflag_t),
    Local(libc::tcflag_t),
    Control(libc::tcflag_t),
    Size(libc::tcflag_t),
}

/// The opcodes that Linux has a mode for. (It has none for VDSUSP 11, VFLUSH 15, VSTATUS 17.)
fn mode(opcode: u8) -> Option<Mode8> {
    use Mode8::*;
    Some(match opcode {
        1 => Char(libc::VINTR),
        2 => Char(libc::VQUIT),
        3 => Char(libc::VERASE),
        4 => Char(libc::VKILL),
        5 => Char(libc::VEOF),
        6 => Char(libc::VEOL),
        7 => Char(libc::VEOL2),
        8 => Char(libc::VSTART),
        9 => Char(libc::VSTOP),
        10 => Char(libc::VSUSP),
        12 => Char(libc::VREPRINT),
        13 => Char(libc::VWERASE),
        14 => Char(libc::VLNEXT),
        16 => Char(libc::VSWTC),
        18 => Char(libc::VDISCARD),
        30 => In(libc::IGNPAR),
        31 => In(libc::PARMRK),
        32 => In(libc::INPCK),
        33 => In(libc::ISTRIP),
        34 => In(libc::INLCR),
        35 => In(libc::IGNCR),
        36 => In(libc::ICRNL),
        37 => In(libc::IUCLC),
        38 => In(libc::IXON),
        39 => In(libc::IXANY),
        40 => In(libc::IXOFF),
        41 => In(libc::IMAXBEL),
        42 => In(libc::IUTF8),
        50 => Local(libc::ISIG),
        51 => Local(libc::ICANON),
        52 => Local(libc::XCASE),
        53 => Local(libc::ECHO),
        54 => Local(libc::ECHOE),
        55 => Local(libc::ECHOK),
        56 => Local(libc::ECHONL),
        57 => Local(libc::NOFLSH),
        58 => Local(libc::TOSTOP),
        59 => Local(libc::IEXTEN),
        60 => Local(libc::ECHOCTL),
        61 => Local(libc::ECHOKE),
        62 => Local(libc::PENDIN),
        70 => Out(libc::OPOST),
        71 => Out(libc::OLCUC),
        72 => Out(libc::ONLCR),
        73 => Out(libc::OCRNL),
        74 => Out(libc::ONOCR),
        75 => Out(libc::ONLRET),
        90 => Size(libc::CS7),
        91 => Size(libc::CS8),
        92 => Control(libc::PARENB),
        93 => Control(libc::PARODD),
        _ => return None,
    })
}

fn apply(t: &mut libc::termios, modes: &[(u8, u32)]) {
    fn bit(field: &mut libc::tcflag_t, bit: libc::tcflag_t, on: bool) {
        if on {
            *field |= bit;
        } else {
            *field &= !bit;
        }
    }
    for &(opcode, value) in modes {
        let on = value != 0;
        match mode(opcode) {
            // RFC 4254: 255 means that the character is not in use; Linux writes that 0.
            Some(Mode8::Char(at)) => t.c_cc[at] = if value == 255 { 0 } else { value as u8 },
            Some(Mode8::In(b)) => bit(&mut t.c_iflag, b, on),
            Some(Mode8::Out(b)) => bit(&mut t.c_oflag, b, on),
            Some(Mode8::Local(b)) => bit(&mut t.c_lflag, b, on),
            Some(Mode8::Control(b)) => bit(&mut t.c_cflag, b, on),
            Some(Mode8::Size(b)) if on => t.c_cflag = (t.c_cflag & !libc::CSIZE) | b,
            Some(Mode8::Size(_)) | None => {}
        }
        // 128 and 129: a number of bits per second; a pseudo terminal knows only the names of speeds.
        if let Some(speed) = speed(value) {
            // SAFETY: writes fields of `t` only.
            unsafe {
                match opcode {
                    128 => drop(libc::cfsetispeed(t, speed)),
                    129 => drop(libc::cfsetospeed(t, speed)),
                    _ => {}
                }
            }
        }
    }
}

fn speed(bits_per_second: u32) -> Option<libc::speed_t> {
    Some(match bits_per_second {
        1200 => libc::B1200,
        2400 => libc::B2400,
        4800 => libc::B4800,
        9600 => libc::B9600,
        19200 => libc::B19200,
        38400 => libc::B38400,
        57600 => libc::B57600,
        115_200 => libc::B115200,
        230_400 => libc::B230400,
        460_800 => libc::B460800,
        921_600 => libc::B921600,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank() -> libc::termios {
        // SAFETY: plain integers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    #[test]
    fn modes_are_set_and_cleared() {
        let mut t = blank();
        t.c_lflag = libc::ECHO | libc::ISIG;
        apply(
            &mut t,
            &[
                (53, 0),
                (50, 1),
                (1, 3),
                (2, 255),
                (72, 1),
                (129, 38400),
                (91, 1),
                (90, 0),
            ],
        );
        assert_eq!(t.c_lflag, libc::ISIG);
        assert_eq!(t.c_cc[libc::VINTR], 3);
        assert_eq!(t.c_cc[libc::VQUIT], 0);
        assert_eq!(t.c_oflag, libc::ONLCR);
        assert_eq!(t.c_cflag & libc::CSIZE, libc::CS8);
        // SAFETY: reads a field.
        assert_eq!(unsafe { libc::cfgetospeed(&t) }, libc::B38400);
    }

    #[test]
    fn unknown_opcodes_change_nothing() {
        let mut t = blank();
        apply(
            &mut t,
            &[
                (0, 1),
                (11, 1),
                (15, 1),
                (17, 1),
                (99, 1),
                (160, 7),
                (255, 1),
            ],
        );
        assert_eq!((t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag), (0, 0, 0, 0));
        assert_eq!(t.c_cc, [0; libc::NCCS]);
    }
}
