// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bufio"
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mkmachine/mkmachine/"

// mayImport is the table of docs/design.md: what of ours a package may import. A name
// ending in /... covers the packages below it. A package that is missing here fails.
var mayImport = map[string]string{
	"internal/event":             "",
	"internal/fault":             "",
	"internal/undo":              "",
	"internal/pattern":           "",
	"internal/kernel":            "internal/fault",
	"internal/compress/...":      "internal/fault internal/compress/...",
	"internal/cas":               "internal/event internal/undo internal/fault internal/kernel internal/compress/...",
	"internal/rootfs/...":        "internal/rootfs/... internal/event internal/undo internal/fault internal/kernel internal/compress/...",
	"recipes/...":                "internal/pattern internal/fault recipes/...",
	"sources":                    "internal/pattern internal/fault",
	"sources/pgp":                "sources internal/fault",
	"sources/deb":                "sources sources/pgp internal/fault internal/event internal/compress/...",
	"sources/fetch":              "sources internal/cas internal/event internal/fault",
	"bootstrap":                  "internal/pattern internal/rootfs/... internal/event internal/fault internal/undo internal/compress/... sources sources/deb",
	"bootstrap/deb":              "bootstrap internal/rootfs/... internal/event internal/fault internal/undo internal/compress/... sources sources/deb",
	"snapshot":                   "internal/rootfs/... internal/undo internal/event internal/fault internal/kernel",
	"runner/...":                 "internal/event internal/undo internal/fault internal/kernel runner/...",
	"internal/launch":            "snapshot runner internal/fault internal/event",
	"internal/build":             "bootstrap bootstrap/deb snapshot runner/... recipes/... sources sources/... internal/...",
	"cmd/mkmachine":              "bootstrap/deb internal/... recipes/... runner/... snapshot sources sources/...",
	"sources/sourcetest":         "sources sources/... internal/...",
	"internal/kernel/kerneltest": "internal/kernel internal/fault",
}

// onlyIn says which packages may import something that is a border.
var onlyIn = map[string][]string{
	"net/http":                    {"sources/fetch", "sources/sourcetest"},
	"os/exec":                     {"runner", "internal/kernel/kerneltest", "sources/sourcetest", "snapshot"},
	"C":                           {},
	"log":                         {},
	"golang.org/x/crypto/openpgp": {},
	"github.com/ProtonMail/go-crypto/openpgp":    {},
	"github.com/ProtonMail/go-crypto/openpgp/v2": {"sources/pgp", "sources/sourcetest"},
}

type goPackage struct {
	ImportPath string
	Dir        string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,GoFiles,Imports", module+"...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			return all
		}
		if len(p.GoFiles) > 0 {
			all = append(all, p)
		}
	}
}

func covers(pattern, name string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == base || strings.HasPrefix(name, base+"/")
	}
	return pattern == name
}

func TestImportsFollowTheDesign(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, known := mayImport[name]
		for pattern, list := range mayImport {
			if !known && covers(pattern, name) {
				allowed, known = list, true
			}
		}
		if !known {
			t.Errorf("%s: not in the table of borders; docs/design.md and this test name every package", name)
			continue
		}
		for _, imp := range p.Imports {
			if homes, border := onlyIn[imp]; border && !slices.Contains(homes, name) {
				t.Errorf("%s imports %s; only %v may", name, imp, homes)
			}
			ours, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if !slices.ContainsFunc(strings.Fields(allowed), func(a string) bool { return covers(a, ours) }) {
				t.Errorf("%s imports %s, which docs/design.md does not allow", name, ours)
			}
		}
	}
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// mayInit lists the functions named init that are allowed, none so far.
var mayInit = map[string]bool{}

func TestSourceRules(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, f := range p.GoFiles {
			path := filepath.Join(p.Dir, f)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(text, []byte("// SPDX-License-Identifier: Apache-2.0\n")) {
				t.Errorf("%s/%s: the first line is not the licence", name, f)
			}
			fset := token.NewFileSet()
			tree, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			checkSource(t, name, fset, tree)
		}
	}
}

// checkSource applies the rules that hold for every statement of a file.
func checkSource(t *testing.T, name string, fset *token.FileSet, tree *ast.File) {
	// Generators are programs of their own, and so is what runs in a re-executed child.
	inCommand := strings.HasPrefix(name, "cmd/") || strings.HasSuffix(name, "/gen")
	file := filepath.Base(fset.Position(tree.Pos()).Filename)
	inChild := name == "runner" && file == "entry.go" || name == "bootstrap/deb" && file == "serve.go"
	isTest := strings.HasSuffix(name, "test")
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil && !mayInit[name] {
				t.Errorf("%s: func init is work at start-up", fset.Position(n.Pos()))
			}
		case *ast.SelectorExpr:
			pkg, ok := n.X.(*ast.Ident)
			if !ok {
				return true
			}
			call := pkg.Name + "." + n.Sel.Name
			switch call {
			case "fmt.Print", "fmt.Println", "fmt.Printf", "os.Stdout", "os.Stderr", "os.Getenv", "os.LookupEnv", "os.Environ":
				if !inCommand && !isTest && !inChild {
					t.Errorf("%s: %s belongs to cmd/mkmachine", fset.Position(n.Pos()), call)
				}
			case "os.Exit":
				if !inCommand && !isTest && name != "runner" {
					t.Errorf("%s: only cmd/mkmachine and the runner's child exit", fset.Position(n.Pos()))
				}
			case "context.Background", "context.TODO":
				if !inCommand && !isTest && !inChild {
					t.Errorf("%s: take the caller's context", fset.Position(n.Pos()))
				}
			}
		}
		return true
	})
}

// TestDependencyList: the modules that the binary links are those of docs/deps.txt, each with its purpose.
func TestDependencyList(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/mkmachine")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	linked := strings.Fields(string(out))
	slices.Sort(linked)
	linked = slices.Compact(linked)
	linked = slices.DeleteFunc(linked, func(m string) bool { return m+"/" == module })
	text, err := os.ReadFile("../../docs/deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, purpose, _ := strings.Cut(line, " ")
		if strings.TrimSpace(purpose) == "" {
			t.Errorf("docs/deps.txt: %s has no purpose", name)
		}
		listed = append(listed, name)
	}
	slices.Sort(listed)
	if !slices.Equal(linked, listed) {
		t.Errorf("docs/deps.txt lists\n\t%s\nthe binary links\n\t%s", strings.Join(listed, "\n\t"), strings.Join(linked, "\n\t"))
	}
}

// TestRepositoryIsItsOwn: no file is huge by accident and none names a path of the machine it was written on.
func TestRepositoryIsItsOwn(t *testing.T) {
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	for _, f := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		info, err := os.Stat(filepath.Join("../..", f))
		if err != nil || info.Mode()&fs.ModeType != 0 {
			continue
		}
		if info.Size() > 2<<20 {
			t.Errorf("%s has %s bytes", f, strconv.FormatInt(info.Size(), 10))
		}
	}
}
