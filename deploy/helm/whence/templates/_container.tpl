{{/* The container of whence. As a sidecar it is the model's engine too, which takes minutes to load. */}}
{{- define "whence.container" -}}
{{- $shared := include "whence.shared" . -}}
{{- $sidecar := eq .Values.mode "sidecar" -}}
{{- $live := list "python" "/opt/whence/healthcheck.py" "--live" "unix:/run/whence/whence.sock" -}}
{{- $serves := list "python" "/opt/whence/healthcheck.py" "unix:/run/whence/whence.sock" -}}
name: whence
image: {{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if $sidecar }}
restartPolicy: Always
{{- end }}
args: [serve]
envFrom:
  - configMapRef:
      name: {{ include "whence.name" . }}-settings
env:
  {{- with .Values.encryption.secret }}
  - name: WHENCE_JOURNAL_KEYS
    valueFrom:
      secretKeyRef:
        name: {{ . }}
        key: keys-url
        optional: true
  {{- end }}
  {{- if $shared }}
  - name: WHENCE_JOURNAL
    valueFrom:
      secretKeyRef:
        name: {{ .Values.postgresql.secret }}
        key: url
  {{- end }}
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  - name: OTEL_RESOURCE_ATTRIBUTES
    value: k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE)
ports:
  {{- if not $sidecar }}
  - name: grpc
    containerPort: 50051
  - name: https
    containerPort: 8000
  {{- end }}
  - name: metrics
    containerPort: 9464
startupProbe:
  exec:
    command: {{ toJson (ternary $serves $live $sidecar) }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ ternary 120 24 $sidecar }}
readinessProbe:
  exec:
    command: {{ toJson $serves }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  exec:
    command: {{ toJson $live }}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: socket
    mountPath: /run/whence
  - name: {{ ternary "data" "journal" (ne $shared "") }}
    mountPath: /data
  {{- if $shared }}
  - name: journal-files
    mountPath: /etc/whence/journal
    readOnly: true
  {{- end }}
  {{- if .Values.encryption.secret }}
  - name: encryption
    mountPath: /etc/whence/encryption
    readOnly: true
  {{- end }}
  {{- if .Values.modelClaim }}
  - name: models
    mountPath: /models
    readOnly: true
  {{- end }}
  - name: whence-cache
    mountPath: /cache
  - name: whence-tmp
    mountPath: /tmp
  {{- if not $sidecar }}
  - name: tls
    mountPath: /etc/whence/tls
    readOnly: true
  {{- if .Values.auth.callersSecret }}
  - name: callers
    mountPath: /etc/whence/callers
    readOnly: true
  {{- end }}
  {{- end }}
{{- end -}}

{{- define "whence.volumes" -}}
- name: socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- if .Values.modelClaim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.modelClaim }}
    readOnly: true
{{- end }}
{{- if include "whence.shared" . }}
- name: data
  emptyDir:
    sizeLimit: 1Gi
- name: journal-files
  secret:
    secretName: {{ .Values.postgresql.secret }}
    defaultMode: 0440
{{- end }}
{{- with .Values.encryption.secret }}
- name: encryption
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
- name: whence-cache
  emptyDir:
    sizeLimit: 1Gi
- name: whence-tmp
  emptyDir:
    sizeLimit: 1Gi
{{- if eq .Values.mode "gateway" }}
- name: tls
  secret:
    secretName: {{ .Values.tls.secret }}
    defaultMode: 0440
{{- if .Values.auth.callersSecret }}
- name: callers
  secret:
    secretName: {{ .Values.auth.callersSecret }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end -}}
