//! `viv completions SHELL`: a script by which a shell completes our command lines; it asks `viv complete`.
use crate::output;
use viv_model::Fault;

#[derive(clap::Args, Debug)]
#[command(after_help = "bash:  viv completions bash > ~/.local/share/bash-completion/completions/viv\n\
                  zsh:   viv completions zsh > \"${fpath[1]}/_viv\"\n\
                  fish:  viv completions fish > ~/.config/fish/completions/viv.fish")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Where we have nothing to say, files are offered.
const BASH: &str = r#"_viv() {
    local IFS=$'\n'
    COMPREPLY=($(viv complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
}
complete -o default -F _viv viv
"#;
const ZSH: &str = r#"#compdef viv
_viv() {
    local -a found
    local line
    for line in ${(f)"$(viv complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"}; do
        found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    if (( $#found )); then
        _describe -V viv found
    else
        _files
    fi
}
if [ "$funcstack[1]" = _viv ]; then
    _viv "$@"
else
    compdef _viv viv
fi
"#;
const FISH: &str = r#"function __viv_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found (viv complete -- $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c viv -f -a '(__viv_complete)'
"#;

pub(crate) fn run(args: Args) -> Result<u8, Fault> {
    output::print(match args.shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    });
    Ok(0)
}
