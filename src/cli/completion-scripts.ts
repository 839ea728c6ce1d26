export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/**
 * What each shell needs to ask `fleece complete`: it gets the words up to the cursor and prints a value and its description
 * per line, or `:files`. Nothing that is typed is evaluated.
 */
export const SCRIPTS: Readonly<Record<Shell, string>> = {
  bash: `# eval "$(fleece completion bash)" in ~/.bashrc
_fleece() {
  local line
  COMPREPLY=()
  while IFS= read -r line; do
    if [[ $line == :files ]]; then
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$2")
      return
    fi
    COMPREPLY+=("\${line%%$'\\t'*}")
  done < <("$1" complete -- "\${COMP_WORDS[@]:1:COMP_CWORD-1}" "$2" 2>/dev/null)
}
complete -F _fleece fleece
`,
  zsh: `#compdef fleece
# eval "$(fleece completion zsh)" in ~/.zshrc, after compinit
_fleece() {
  local -a lines values
  local line
  lines=("\${(@f)$(fleece complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  for line in $lines; do
    if [[ $line == :files ]]; then
      _files
      return
    fi
    values+=("\${\${line%%$'\\t'*}//:/\\\\:}:\${line#*$'\\t'}")
  done
  (( $#values )) && _describe fleece values
}
compdef _fleece fleece
`,
  fish: `# fleece completion fish > ~/.config/fish/completions/fleece.fish
function __fleece_complete
  set -l before (commandline -opc)
  for line in (fleece complete -- $before[2..] (commandline -ct) 2>/dev/null)
    if test "$line" = ":files"
      __fish_complete_path (commandline -ct)
    else
      echo $line
    end
  end
end
complete -c fleece -f -a "(__fleece_complete)"
`,
};
